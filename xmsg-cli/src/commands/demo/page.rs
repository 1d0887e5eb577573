//! The web page of the demo's proxy, if this program is built with it.

use xmsg_proxy::Proxy;

/// The web page. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Page {
    #[cfg(feature = "page")]
    admin: xmsg_proxy::admin::Admin,
    address: String,
    /// The last link that was made.
    #[cfg(feature = "page")]
    link: String,
}

impl Page {
    /// Returns a link with the right to make changes: the user of this terminal runs the proxy. A link works
    /// once, so this returns another one when it was used.
    #[cfg(feature = "page")]
    pub(super) fn link(&mut self) -> &str {
        if !self.admin.is_unused(&self.link) {
            // Without randomness, the page can be looked at.
            self.link = self.admin.link().unwrap_or_else(|| self.address.clone());
        }
        &self.link
    }

    #[cfg(not(feature = "page"))]
    pub(super) fn link(&mut self) -> &str {
        &self.address
    }

    /// Returns the link with the right to look. It reveals no secret to a reader of a pipe or a file.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

/// Serves the page of this proxy on a free port of the loopback.
#[cfg(feature = "page")]
pub(super) fn open(proxy: &Proxy) -> anyhow::Result<Option<Page>> {
    use anyhow::Context;
    use xmsg_proxy::admin::{Admin, OwnProxy, Sources, Token, Tokens};

    let socket = std::net::TcpListener::bind("127.0.0.1:0").context("no free port for the web page")?;
    let sources = Sources {
        proxy: Some(proxy.monitor()),
        own_proxy: Some(OwnProxy::new(proxy.address().clone())),
        ..Sources::default()
    };
    let tokens = Tokens { operator: Some(Token::random()?), open_to_look: true, ..Tokens::default() };
    let admin = Admin::start(socket, "xmsg demo", sources, tokens, serde_json::json!({}))?;
    let address = format!("http://{}/", admin.address());
    Ok(Some(Page { admin, address, link: String::new() }))
}

/// Returns `None`, because this program is built without the page.
#[cfg(not(feature = "page"))]
#[allow(clippy::unnecessary_wraps, reason = "with the page, it can fail")]
pub(super) fn open(_: &Proxy) -> anyhow::Result<Option<Page>> {
    Ok(None)
}
