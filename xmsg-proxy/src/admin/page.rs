//! The files of the web page, which are in the program itself. Nothing of the page comes from elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::State;

/// What a browser may do with the page: take scripts, styles, pictures and data from this server, and nothing
/// from anywhere else; no script or style stands in the page itself, and no other page may show it in a
/// frame.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Where its files are.
pub(super) const FOLDER: &str = "/page/";

/// One file.
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($path:literal: $kind:expr),* $(,)?) => {
        [$(File { path: $path, kind: $kind, text: include_str!(concat!("../../page/", $path)) }),*]
    };
}

/// All files but the page itself.
const FILES: [File; 19] = files![
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "js/app.js": SCRIPT,
    "js/api.js": SCRIPT,
    "js/chart.js": SCRIPT,
    "js/dom.js": SCRIPT,
    "js/format.js": SCRIPT,
    "js/live.js": SCRIPT,
    "js/overview.js": SCRIPT,
    "js/connections.js": SCRIPT,
    "js/poll.js": SCRIPT,
    "js/topics.js": SCRIPT,
    "js/messages.js": SCRIPT,
    "js/connect.js": SCRIPT,
    "js/spool.js": SCRIPT,
    "js/registrations.js": SCRIPT,
    "js/topology.js": SCRIPT,
    "js/settings.js": SCRIPT,
    "js/log.js": SCRIPT,
];

const INDEX: File =
    File { path: "", kind: "text/html; charset=utf-8", text: include_str!("../../page/index.html") };

/// Serves the files. There is nothing secret in them, so that everybody may have them who gets here.
pub(super) fn router() -> Router<Arc<State>> {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(
            &format!("{FOLDER}{}", file.path),
            get(move |headers: HeaderMap| async move { file.answer(&headers) }),
        )
    })
}

/// Returns the page itself.
pub(super) fn index(headers: &HeaderMap) -> Response {
    INDEX.answer(headers)
}

/// Returns whether the client is a browser that is to show something.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/html"))
}

impl File {
    /// Returns a tag that is another one whenever the file is.
    fn tag(&self) -> String {
        // FNV-1a: two versions of a file are to be told apart, and nobody attacks it.
        let hash = self.text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("\"{hash:016x}\"")
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let tag = self.tag();
        let is_known =
            headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.kind)], self.text).into_response()
        };
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        // A browser asks each time, so that it never shows the page of a former version.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script or style in the page itself would not be run, and one from elsewhere would not be there on a
    /// machine without a network.
    #[test]
    fn the_page_names_only_files_that_are_served_and_has_nothing_inline() {
        let page = INDEX.text;
        for (attribute, _) in page.match_indices("src=\"").chain(page.match_indices("href=\"")) {
            let rest = &page[attribute..];
            let value = rest.split('"').nth(1).unwrap();
            let is_served =
                value.strip_prefix(FOLDER).is_some_and(|path| FILES.iter().any(|file| file.path == path));
            assert!(is_served || value.starts_with('#'), "{value}");
        }
        for inline in ["<style", "style=\"", "onclick", "onload", "javascript:", "<script>"] {
            assert!(!page.contains(inline), "{inline}");
        }
        for File { path, text, .. } in &FILES {
            for other in [
                "https://",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
            ] {
                assert!(!text.contains(other), "{path} has {other}");
            }
        }
    }

    /// A module that is not in the table would be found missing only in a browser.
    #[test]
    fn every_file_of_the_page_is_served_and_every_import_is_there() {
        fn collect(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { collect(&path, found) } else { found.push(path) }
            }
        }
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let mut found = Vec::new();
        collect(&folder, &mut found);
        let mut found: Vec<_> = found
            .iter()
            .map(|path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned())
            .collect();
        let mut served: Vec<_> =
            FILES.iter().map(|file| file.path.to_owned()).chain(["index.html".to_owned()]).collect();
        found.sort();
        served.sort();
        assert_eq!(found, served);
        for File { path, text, .. } in &FILES {
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let name = line.split('"').nth(1).unwrap().strip_prefix("./").unwrap();
                assert!(FILES.iter().any(|file| file.path == format!("js/{name}")), "{path}: {line}");
            }
        }
    }

    #[test]
    fn a_browser_that_has_a_file_is_told_so() {
        let first = INDEX.answer(&HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].clone();
        let known = INDEX.answer(&[(header::IF_NONE_MATCH, tag)].into_iter().collect());
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn programs_that_ask_get_text() {
        let wants = |accept: &'static str| {
            is_wanted(&[(header::ACCEPT, HeaderValue::from_static(accept))].into_iter().collect())
        };
        assert!(wants("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!wants("*/*") && !wants("text/plain") && !is_wanted(&HeaderMap::new()));
    }
}
