//! A service and a client whose traces are told to OpenTelemetry: each span is printed as one line of JSON,
//! in place of being sent to a collector. It needs a proxy: `cargo run --bin xmsg-proxy`.
//!
//! Run it with `cargo run -p xmsg-core --example traces --features otel`. All spans have the same trace: the
//! context goes along in the headers of the request and of the reply.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use serde_json::{Map, Value, json};
use tracing::{Instrument, Level, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xmsg_core::otel::{Propagator, set_propagator};
use xmsg_core::{Actor, Message};

/// The context of a trace in the headers `traceparent` and `tracestate`.
struct TraceContext(TraceContextPropagator);

impl Propagator for TraceContext {
    fn inject(&self, span: &Span) -> HashMap<String, String> {
        let mut headers = HashMap::new();
        self.0.inject_context(&span.context(), &mut headers);
        headers
    }

    fn extract(&self, span: &Span, headers: &HashMap<String, String>) {
        // A context that is none leaves the span without a parent.
        if let Err(error) = span.set_parent(self.0.extract(headers)) {
            tracing::debug!(%error, "a trace is not continued");
        }
    }
}

/// Prints spans. A program would name the exporter of `opentelemetry-otlp` here.
#[derive(Debug)]
struct Printer;

impl SpanExporter for Printer {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        for span in spans {
            let attributes = span.attributes.iter();
            let attributes: Map<String, Value> =
                attributes.map(|one| (one.key.to_string(), one.value.to_string().into())).collect();
            let line = json!({
                "name": span.name,
                "kind": format!("{:?}", span.span_kind),
                "trace": span.span_context.trace_id().to_string(),
                "span": span.span_context.span_id().to_string(),
                "parent": span.parent_span_id.to_string(),
                "status": format!("{:?}", span.status),
                "attributes": attributes,
            });
            println!("{line}");
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let provider = SdkTracerProvider::builder().with_simple_exporter(Printer).build();
    // Spans of messages have the level DEBUG: nothing else of that level is told.
    let targets =
        Targets::new().with_target("xmsg_core::otel", Level::DEBUG).with_target("traces", Level::INFO);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("traces")).with_filter(targets);
    tracing_subscriber::registry().with(layer).init();
    set_propagator(TraceContext(TraceContextPropagator::new()));

    let service = Actor::connect("stock").await?;
    let take = |request: Message| async move { request.reply_with(request.value::<i32>()? - 1) };
    service.subscribe_with("stock:take", 8, take).await?;

    let client = Actor::connect("shop").await?;
    let request = Message::of("stock:take", 17)?;
    let order = info_span!(target: "traces", "order");
    let left = client.request(&request, Duration::from_secs(10)).instrument(order).await?;
    println!("left: {}", left.value::<i32>()?);
    // Nobody answers there.
    let failed = client.request(&Message::of("stock:return", 1)?, Duration::from_millis(10)).await;
    println!("not answered: {}", failed.is_err());

    client.drain(Duration::from_secs(5)).await;
    service.drain(Duration::from_secs(5)).await;
    provider.shutdown()?;
    Ok(())
}
