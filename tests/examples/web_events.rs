//! A web service that sends everything that is published to `news` to every browser with `/events` open, as
//! server-sent events.
//!
//! Run it with `cargo run -p xmsg-tests --example web_events [127.0.0.1:8080]` while a proxy runs (`cargo run
//! --bin xmsg-proxy`). Then open the page that it prints, and run `xmsg pub news 'It works'`. SIGTERM or
//! Ctrl-C ends it: every browser still gets what was received, and then the end of the stream.
//!
//! There is one subscription, whatever the number of browsers. The last [`BACKLOG`] messages are kept for all
//! browsers together. A browser that is further behind misses the oldest messages, and gets their number. It
//! makes nobody wait.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot};
use xmsg_core::{Actor, Message};

/// The number of messages that are kept for browsers that are behind.
const BACKLOG: usize = 256;
/// The time limit for a graceful end.
const LIMIT: Duration = Duration::from_secs(30);

/// The news are kept as text, because a `Message` would keep the memory of messages next to it alive.
type News = Arc<str>;

const PAGE: &str = "<!doctype html><title>news</title><ul id=list></ul><script>
const add = text => list.appendChild(document.createElement('li')).textContent = text;
const events = new EventSource('/events');
events.onmessage = event => add(event.data);
events.addEventListener('missed', event => add(event.data + ' missed'));
</script>";

/// Streams events to a browser. The sender is weak, so that it does not keep the streams of other browsers
/// open when the news have ended.
fn events(news: &broadcast::WeakSender<News>) -> Response {
    let Some(sender) = news.upgrade() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the news have ended\n").into_response();
    };
    let events = stream::unfold(sender.subscribe(), |mut news| async move {
        let event = match news.recv().await {
            Ok(text) => Event::default().data(text),
            Err(RecvError::Lagged(missed)) => Event::default().event("missed").data(missed.to_string()),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(event), news))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

fn text_of(message: &Message) -> News {
    let text = message.value::<String>();
    text.unwrap_or_else(|_| String::from_utf8_lossy(message.data()).into_owned()).into()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    let actor = Actor::connect("web").await?;
    let mut news = actor.subscribe("news").await?;

    let (sender, _) = broadcast::channel::<News>(BACKLOG);
    let app = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/events", get(|State(news): State<broadcast::WeakSender<News>>| async move { events(&news) }))
        .with_state(sender.downgrade());
    println!("http://{}/", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let serving = tokio::spawn(serving.into_future());

    loop {
        tokio::select! {
            _ = interrupt.recv() => news.drain(),
            _ = terminate.recv() => news.drain(), // received messages still come, then `None`
            message = news.next() => match message {
                None => break,
                Some(Err(error)) => eprintln!("passed over: {error}"),
                // An error means that no browser is connected.
                Some(Ok(message)) => drop(sender.send(text_of(&message))),
            },
        }
    }
    drop((sender, stop)); // the streams end after the remaining messages, and then the server ends
    if tokio::time::timeout(LIMIT, serving).await.is_err() {
        eprintln!("some browsers did not read to the end within {LIMIT:?}");
    }
    println!("{}", actor.drain(LIMIT).await);
    Ok(())
}
