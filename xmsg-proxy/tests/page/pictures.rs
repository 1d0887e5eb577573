//! The pictures of the page in README and docs: drawn by this test, if `XMSG_TEST_PICTURES` names the folder,
//! as `tests/pictures` does; otherwise what they show is compared with what the page shows now.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::browser::Browser;
use super::site::Site;

/// Bytes of a picture at most: whoever clones the repository fetches all versions of it.
const PICTURE_MAX: usize = 150 << 10;
/// How long messages flow before pictures are drawn: plots show five minutes.
const FLOW: Duration = Duration::from_secs(310);

/// What does not change from one run to the next: headings, heads of columns, and the names of the pages.
const SHOWN: &str = "return [...document.querySelectorAll('nav a, h1, h2, th')].filter((node) => node.checkVisibility()) \
    .map((node) => node.textContent.trim()).filter((text) => text).join('\\n') + '\\n'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pictures_in_the_documents_show_the_page_as_it_is() {
    let drawn = std::env::var_os("XMSG_TEST_PICTURES").map(PathBuf::from);
    let site = Site::start().await;
    let slow = site.stalled_subscriber("camera:").await;
    let flows = [
        site.swinging_flow("beam:current", "beam:", 31.0).await,
        site.swinging_flow("beam:energy", "beam:energy", 67.0).await,
        site.swinging_flow("detector:event", "", 113.0).await,
        site.flood("camera:hall").await,
    ];
    let browser = Browser::start().await;
    browser.open(&site.url("")).await;
    browser.reads(slow.peer()).await;
    browser.reads("detector:event").await;
    if drawn.is_some() {
        tokio::time::sleep(FLOW).await;
    }

    let keep = async |name: &str| keep(&browser, drawn.as_deref(), name).await;
    keep("page").await;
    browser.dark(true).await;
    keep("page-dark").await;
    browser.dark(false).await;
    browser.resize(390, 844).await;
    keep("page-phone").await;
    browser.resize(1280, 900).await;
    browser.open(&site.url("#/topology")).await;
    browser.reads("detector:event").await;
    browser.reads("beam:current").await;
    keep("page-topology").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((flows, slow));
    browser.close().await;
}

/// Draws a picture into the folder, with what it shows beside it; or compares that with what is shown now.
async fn keep(browser: &Browser, folder: Option<&Path>, name: &str) {
    let shown = browser.run(SHOWN, json!([])).await.as_str().unwrap_or_default().to_owned();
    assert!(shown.lines().count() >= 2, "{name}: {shown}");
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pictures");
    let folder = match folder {
        Some(folder) => {
            std::fs::write(folder.join(format!("{name}.png")), browser.screenshot().await).unwrap();
            std::fs::write(folder.join(format!("{name}.txt")), &shown).unwrap();
            folder
        }
        None => &pictures,
    };
    let png = std::fs::read(folder.join(format!("{name}.png"))).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 8 << 10, "{name}: no picture, or an empty one");
    assert!(png.len() < PICTURE_MAX, "{name}: {} bytes", png.len());
    let expected = std::fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
    assert_eq!(
        expected, shown,
        "docs/pictures/{name}.png shows the page as it was (left): draw it anew with tests/pictures"
    );
}
