//! A minimal HTTP client, and a parser of metrics, as a monitoring system has them.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::within;

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code: 200 for success.
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Sends a GET request to `address`, such as `127.0.0.1:7775`.
pub async fn get(address: &str, path: &str) -> Response {
    get_with(address, path, "").await
}

/// Sends a GET request with further headers. Each header has its line end.
pub async fn get_with(address: &str, path: &str, headers: &str) -> Response {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    ask(address, request.as_bytes()).await.expect("an answer")
}

/// Sends a POST request without a body, with these headers. Each header has its line end.
pub async fn post(address: &str, path: &str, headers: &str) -> Response {
    send(address, "POST", path, headers, "").await
}

/// Sends a request with this body and these headers. Each header has its line end.
pub async fn send(address: &str, method: &str, path: &str, headers: &str, body: &str) -> Response {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    ask(address, request.as_bytes()).await.expect("an answer")
}

/// Sends these bytes, and reads to the end of the connection. Returns `None` if there was no response.
pub async fn ask(address: &str, request: &[u8]) -> Option<Response> {
    let mut stream = within("connect", TcpStream::connect(address)).await.expect("somebody listens");
    // A server that refuses a request need not read the rest of it.
    let _ = within("send", stream.write_all(request)).await;
    let mut answer = Vec::new();
    let _ = within("the answer", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Response { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// Server-sent events as they come. Dropping it leaves.
#[derive(Debug)]
pub struct Events {
    stream: TcpStream,
    received: String,
}

impl Events {
    /// Opens a stream of events, with further headers. Each header has its line end. A refusal is returned as
    /// an error.
    pub async fn open(address: &str, path: &str, headers: &str) -> Result<Self, Response> {
        let mut stream = within("connect", TcpStream::connect(address)).await.expect("somebody listens");
        // A response to this version has no chunks.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n");
        within("send", stream.write_all(request.as_bytes())).await.expect("it is read");
        let mut events = Self { stream, received: String::new() };
        let head = events.until("\r\n\r\n").await.expect("a status").to_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        if status == 200 {
            assert!(head.contains("content-type: text/event-stream"), "{head}");
            return Ok(events);
        }
        while events.read().await {}
        Err(Response { status, head, body: events.received })
    }

    /// Returns the name and the data of the next event, and skips comments. Returns `None` at the end of the
    /// stream.
    pub async fn next(&mut self) -> Option<(String, String)> {
        loop {
            let event = self.until("\n\n").await?;
            let line = |field: &str| event.lines().find_map(|line| line.strip_prefix(field));
            if let (Some(name), Some(data)) = (line("event: "), line("data: ")) {
                return Some((name.to_owned(), data.to_owned()));
            }
        }
    }

    /// Returns what comes before this text, and skips it. Returns `None` at the end of the stream.
    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some((before, rest)) = self.received.split_once(end) {
                let (before, rest) = (before.to_owned(), rest.to_owned());
                self.received = rest;
                return Some(before);
            }
            if !self.read().await {
                return None;
            }
        }
    }

    async fn read(&mut self) -> bool {
        let mut bytes = vec![0; 64 << 10];
        let len = within("an event", self.stream.read(&mut bytes)).await.unwrap_or(0);
        // The tests have it send ASCII only.
        self.received.push_str(str::from_utf8(&bytes[..len]).expect("ASCII"));
        len > 0
    }
}

/// Returns the samples of a page in the `OpenMetrics` text format, by name and labels as in the text.
///
/// # Panics
///
/// If the page violates the format.
#[must_use]
pub fn samples(page: &str) -> BTreeMap<String, f64> {
    let text = page.strip_suffix("# EOF\n").expect("the page is complete");
    let mut samples = BTreeMap::new();
    let mut known = BTreeSet::new();
    // The name and the type of the current family, whether it has a help text, and its unit.
    let (mut family, mut kind, mut has_help, mut has_unit) = ("", "", false, None);
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let [word, name, rest] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("a word, a name and more: {line}")
            };
            assert!(is_name(name), "{line}");
            if name != family {
                assert!(known.insert(name), "each family comes once: {line}");
                (family, kind, has_help, has_unit) = (name, "", false, None);
            }
            match word {
                "HELP" => {
                    assert!(!has_help && kind.is_empty() && rest.ends_with('.'), "{line}");
                    has_help = true;
                }
                "TYPE" => {
                    assert!(has_help && ["counter", "gauge", "info"].contains(&rest), "{line}");
                    kind = rest;
                }
                "UNIT" => {
                    assert!(!kind.is_empty() && name.ends_with(&format!("_{rest}")), "{line}");
                    has_unit = Some(rest);
                }
                _ => panic!("an unknown comment: {line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and its value");
        let value: f64 = value.parse().expect("a number");
        let name = series.split('{').next().unwrap_or_default();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            "gauge" => "",
            _ => panic!("a sample without a type: {line}"),
        };
        assert_eq!(name, format!("{family}{suffix}"), "a sample of its family");
        assert!(has_unit.is_some() || !name.contains("_bytes"), "bytes are a unit: {line}");
        assert!(value.is_finite() && value >= 0.0, "{line}");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            check_labels(labels);
        }
        assert!(samples.insert(series.to_owned(), value).is_none(), "each series comes once: {line}");
    }
    samples
}

fn check_labels(text: &str) {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).expect("braces");
    let mut names = BTreeSet::new();
    let mut rest = inner;
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect("a label and its value");
        assert!(is_name(name) && !name.contains(':') && names.insert(name), "{text}");
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = &value[end.expect("a closing quote") + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}
