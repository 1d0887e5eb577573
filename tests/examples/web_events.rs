//! A web service: what is published to `news` goes to every browser that has `/events` open, as server-sent events.
//!
//! `cargo run -p xmsg-tests --example web_events [127.0.0.1:8080]`; needs a proxy (`cargo run --bin xmsg-proxy`). Then open the page that
//! it names, and `xmsg pub news 'It works'`. SIGTERM or Ctrl-C ends it: every browser still gets what was received, and then the end.
//!
//! There is one subscription, whatever the number of browsers. The last [`BACKLOG`] messages are kept for all of them together; a browser
//! that is further behind misses the oldest, is told how many, and holds up nobody.

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

/// Messages that are kept for browsers that are behind.
const BACKLOG: usize = 256;
/// How long the end may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A text rather than a `Message`, which would keep the memory of its neighbours alive.
type News = Arc<str>;

const PAGE: &str = "<!doctype html><title>news</title><ul id=list></ul><script>
const add = text => list.appendChild(document.createElement('li')).textContent = text;
const events = new EventSource('/events');
events.onmessage = event => add(event.data);
events.addEventListener('missed', event => add(event.data + ' missed'));
</script>";

/// The weak sender lets browsers join, and does not keep the others waiting when the news have ended.
async fn events(State(news): State<broadcast::WeakSender<News>>) -> Response {
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
        .route("/events", get(events))
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
            _ = terminate.recv() => news.drain(), // what is on its way still comes, then `None`
            message = news.next() => match message {
                None => break,
                Some(Err(error)) => eprintln!("passed over: {error}"),
                Some(Ok(message)) => drop(sender.send(text_of(&message))), // an error: nobody is looking
            },
        }
    }
    drop((sender, stop)); // the streams end when they have given out the rest, and with them the server
    if tokio::time::timeout(LIMIT, serving).await.is_err() {
        eprintln!("some browsers did not read to the end within {LIMIT:?}");
    }
    println!("{}", actor.drain(LIMIT).await);
    Ok(())
}
