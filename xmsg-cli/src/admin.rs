//! The HTTP server of a daemon: its address, its token, and requests to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, DATE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use xmsg_core::address::bracketed;
use xmsg_core::security::read_secret;
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::deadline::Deadline;
use zeroize::Zeroizing;

use crate::exit::{AtAdmin, Usage};
use crate::received_json;
use crate::settings::{self, Found};

/// The default port of a proxy's HTTP server.
const PORT: u16 = 7775;
/// How long an answer may take. The server delays the answers to wrong tokens one after another.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer, in bytes. One page of a list has ten thousand entries.
const ANSWER_MAX: usize = 64 << 20;
/// The number of characters of an answer that an error shows.
const ANSWER_CHARS_SHOWN: usize = 300;

/// The options that select the HTTP server and its token.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "HTTP server")]
pub(crate) struct AdminOptions {
    /// Where the proxy serves HTTP: the address of its own option --admin, or http://HOST:PORT
    #[arg(long, value_name = "HOST:PORT|URL", global = true, hide = true)]
    admin: Option<String>,

    /// The file with the token of the HTTP server, in its first line
    #[arg(long, value_name = "FILE", global = true, hide = true)]
    admin_token_file: Option<String>,
}

/// The address of an HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    host: String,
    port: u16,
    /// The prefix of every path.
    prefix: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, prefix } = self;
        write!(f, "http://{}{prefix}", authority(host, *port))
    }
}

fn authority(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || "not an address: expected HOST:PORT, or http://HOST:PORT".to_owned();
        // A port alone, which the proxy's own option accepts, too.
        if let Ok(port) = text.parse::<u16>() {
            return Self::from_str(&format!("127.0.0.1:{port}"));
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if scheme.eq_ignore_ascii_case("https") {
            return Err("there is no TLS here: name the plain HTTP of the proxy itself, on its own machine or through a tunnel".to_owned());
        }
        let is_plain = scheme.eq_ignore_ascii_case("http") && !rest.contains(['@', '?', '#']);
        let uri: Uri = format!("http://{rest}").parse().ok().filter(|_| is_plain).ok_or_else(wrong)?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        // `Uri` treats a port that is not valid like a missing one.
        let port = match (uri.port_u16(), uri.authority().map_or("", |whole| whole.as_str())) {
            (Some(port), _) => port,
            (None, whole) if whole.rsplit(']').next().unwrap_or_default().contains(':') => {
                return Err(wrong());
            }
            (None, _) => PORT,
        };
        if host.is_empty() || port == 0 {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, prefix: uri.path().trim_end_matches('/').to_owned() })
    }
}

/// An HTTP server, and the token for requests to it.
#[derive(Debug)]
pub(crate) struct Admin {
    address: Address,
    token: Option<HeaderValue>,
    token_file: Option<PathBuf>,
}

/// An answer of the server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The clock of the server, as HTTP writes it, if it says it.
    pub(crate) date: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Returns what the body says, to be shown in an error: the message of a problem, or the beginning of the
    /// text.
    pub(crate) fn text(&self) -> String {
        let problem = received_json::value(&self.body).ok();
        let message = problem.as_ref().and_then(|problem| problem["message"].as_str());
        let text = message.map_or_else(|| String::from_utf8_lossy(&self.body), Into::into);
        text.trim().chars().take(ANSWER_CHARS_SHOWN).collect()
    }
}

impl AdminOptions {
    /// Returns whether the address or the token file was given by an option, the environment or the context.
    pub(crate) fn is_given(&self) -> Result<bool> {
        let address = settings::ADMIN.current(self.admin.as_deref())?;
        let token = settings::ADMIN_TOKEN_FILE.current(self.admin_token_file.as_deref())?;
        let is_default = |found: &Found| matches!(found.source, settings::Source::Default(_));
        Ok(token.is_some() || address.is_some_and(|found| !is_default(&found)))
    }

    /// Whether there is a token.
    pub(crate) fn has_token(&self) -> Result<bool> {
        Ok(settings::ADMIN_TOKEN_FILE.current(self.admin_token_file.as_deref())?.is_some())
    }

    /// Reads the token, without connecting.
    pub(crate) fn admin(self) -> anyhow::Result<Admin> {
        let file = settings::ADMIN_TOKEN_FILE.current(self.admin_token_file.as_deref())?;
        let token = file.as_ref().map(read_token).transpose()?;
        let address = settings::ADMIN.parsed(self.admin.as_deref())?;
        Ok(Admin { address, token, token_file: file.map(|file| file.value.into()) })
    }
}

/// Makes the header with the token in this file.
pub(crate) fn read_token(file: &Found) -> anyhow::Result<HeaderValue> {
    let Found { value: path, source } = file;
    let text = read_secret(Path::new(path))
        .map_err(|error| Error::new(error.kind(), format!("{source}: {error}")))?;
    let token = text.lines().next().unwrap_or_default().trim();
    let header = Zeroizing::new(format!("Bearer {token}"));
    let is_good = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut header = HeaderValue::from_str(&header).ok().filter(|_| is_good).ok_or_else(|| {
        Usage(format!(
            "{source}: the token file {path} can't be used: its first line has to be the token, visible ASCII characters \
             without spaces"
        ))
    })?;
    header.set_sensitive(true);
    Ok(header)
}

impl Admin {
    /// Returns the address of the server.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends one request. An answer that refuses access is an error, as is a missing answer.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        self.ask_with(method, path, Bytes::new(), TIMEOUT).await
    }

    /// Sends one request with a body, and with this time limit for the answer.
    pub(crate) async fn ask_with(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        time: Duration,
    ) -> anyhow::Result<Answer> {
        let exchange = self.exchange(method, path, body);
        let answer = Deadline::after(time).limit(exchange).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, format!("no answer from {} within {time:?}", self.address)))
        });
        let answer = answer.map_err(AtAdmin)?;
        let refused = |text: String| AtAdmin(Error::new(ErrorKind::NotAllowed, text));
        match (answer.status, &self.token_file) {
            (StatusCode::UNAUTHORIZED, None) => {
                let what = "wants its token: name the file that has it with --admin-token-file or XMSG_ADMIN_TOKEN_FILE";
                Err(refused(format!("{} {what}", self.address)).into())
            }
            (StatusCode::UNAUTHORIZED, Some(file)) => Err(refused(format!(
                "{} does not take the token in {}: compare it with the file that the proxy was given",
                self.address,
                file.display()
            ))
            .into()),
            (StatusCode::FORBIDDEN, _) => {
                Err(refused(format!("{} refuses it: {}", self.address, answer.text())).into())
            }
            _ => Ok(answer),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Answer> {
        let Address { host, port, prefix } = &self.address;
        let unusable = |error: hyper::http::Error| {
            Error::new(ErrorKind::InvalidAddress, format!("{} can't be asked", self.address))
                .with_source(error)
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header(HOST, authority(host, *port))
            .header(CONNECTION, "close");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body)).map_err(unusable)?;
        let stream = self.connect().await?;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            let text =
                format!("{} gives no answer that can be read: is it the HTTP of a proxy?", self.address);
            Error::new(ErrorKind::Remote, text).with_source(error)
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.into()))?;
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await?;
            Ok(Answer { status, date, body: body.to_bytes().into() })
        };
        // The connection is driven together with the request; its errors also appear in the answer.
        let (answer, _) = futures::join!(exchange, connection);
        answer.map_err(failed)
    }

    async fn connect(&self) -> Result<TcpStream> {
        let Address { host, port, .. } = &self.address;
        let unknown = |error: Option<io::Error>| {
            let text = format!("the host of {} is not known", self.address);
            let unknown = Error::new(ErrorKind::UnknownHost, text);
            error.into_iter().fold(unknown, Error::with_source)
        };
        let found = tokio::net::lookup_host((&**host, *port)).await.map_err(|error| unknown(Some(error)))?;
        let mut last = None;
        for address in found {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        let Some(error) = last else { return Err(unknown(None)) };
        let text = format!("nobody serves HTTP at {}", self.address);
        Err(Error::new(ErrorKind::Refused, text).with_source(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_form() {
        for (text, shown) in [
            ("127.0.0.1:7775", "http://127.0.0.1:7775"),
            ("localhost", "http://localhost:7775"),
            ("9000", "http://127.0.0.1:9000"),
            ("[::1]:9000", "http://[::1]:9000"),
            ("[::1]", "http://[::1]:7775"),
            ("http://proxy.example:80/", "http://proxy.example:80"),
            ("HTTP://proxy.example:80/xmsg/", "http://proxy.example:80/xmsg"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "0",
            ":7775",
            "a b:1",
            "a:70000",
            "a:0",
            "a:x",
            "a:",
            "ftp://a:1",
            "http://",
            "u@a:1",
            "a:1/?x",
        ] {
            assert!(text.parse::<Address>().unwrap_err().contains("HOST:PORT"), "{text}");
        }
        assert!("https://a:1".parse::<Address>().unwrap_err().contains("no TLS"));
    }

    #[test]
    fn of_an_answer_that_refuses_the_message_is_shown() {
        let text = |body: &str| {
            Answer { status: StatusCode::NOT_FOUND, date: None, body: body.as_bytes().to_vec() }.text()
        };
        assert_eq!(text(r#"{"kind":"unknown","message":"it has left"}"#), "it has left");
        assert_eq!(text("it has left\n"), "it has left");
        assert_eq!(text(r#"{"kind":"unknown"}"#), r#"{"kind":"unknown"}"#);
        assert_eq!(text(&"x".repeat(1000)).len(), ANSWER_CHARS_SHOWN);
    }

    #[test]
    fn a_proxy_is_looked_for_where_it_serves() {
        let defaults = xmsg_proxy::settings::ProxySettings::default();
        assert_eq!(defaults.admin.address().port, PORT);
        assert_eq!(settings::ADMIN.default, Some(&*format!("127.0.0.1:{PORT}")));
    }

    #[test]
    fn a_token_is_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "0123456789abcdef\nmore\n").unwrap();
        let found = Found {
            value: file.path().display().to_string(),
            source: settings::Source::Option("--admin-token-file"),
        };
        let token = read_token(&found).unwrap();
        assert_eq!(token, "Bearer 0123456789abcdef");
        assert!(!format!("{token:?}").contains("0123"));
        for bad in ["", "\n0123456789abcdef", "0123456789 abcdef", "0123456789\u{e4}bcdef"] {
            std::fs::write(&file, bad).unwrap();
            let error = read_token(&found).unwrap_err();
            assert!(error.is::<Usage>() && !error.to_string().contains("0123"), "{error}");
            assert!(error.to_string().starts_with("--admin-token-file: "), "{error}");
        }
    }
}
