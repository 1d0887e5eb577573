//! The web page, in a real browser, of a real proxy with real traffic: what a person does, and what they see
//! then.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod browser;
mod connect;
mod messages;
mod pictures;
mod registrations;
mod settings;
mod site;
mod topology;
mod views;

use browser::Browser;
use serde_json::json;
use site::{Site, TOKEN};

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_overview_shows_what_flows_and_who_is_slow_first() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("")).await;
    browser.reads("live").await;
    browser.reads("No subscriber is slow").await;
    browser.reads("No message has come since you look").await;
    browser.picture("overview-empty").await;

    let slow = site.stalled_subscriber("flood:").await;
    let flood = site.flood("flood:camera").await;
    let steady = site.flow("level:tank", "level:").await;
    let text = browser
        .until("the slow subscriber and both topics", |text| {
            text.contains(slow.peer()) && text.contains("flood:camera") && text.contains("level:tank")
        })
        .await;
    assert!(text.find("WHO IS SLOW").or(text.find("Who is slow")) < text.find("Messages a second"), "{text}");
    // Lines of the plots have points.
    let drawn =
        "return String(document.querySelector('.chart path').getAttribute('d').split('L').length > 1)";
    browser.until_run("a line is drawn", drawn, "true").await;
    browser.click("radio", "1 hour").await;
    browser.reads("−60 min").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((flood, steady, slow));
    browser.close().await;
}

/// Plots and topics stay under the pointer while subscribers become slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_moves_nothing_that_is_under_the_pointer() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("")).await;
    browser.reads("No message has come since you look").await;
    let top = "const topics = [...document.querySelectorAll('h2')].find((node) => node.textContent === 'Busiest topics'); \
        return String(Math.round(topics.getBoundingClientRect().top + window.scrollY))";
    browser.hover("heading", "Busiest topics").await;
    let before = browser.run(top, json!([])).await;
    let mut slow = Vec::new();
    for _ in 0..6 {
        slow.push(site.stalled_subscriber("flood:").await);
    }
    let flood = site.flood("flood:camera").await;
    browser.until("all of them", |text| slow.iter().all(|one| text.contains(one.peer()))).await;
    assert_eq!(browser.run(top, json!([])).await, before);
    browser.check("slow subscribers while the pointer is below them").await;
    browser.hover("heading", "Overview").await;
    let has_moved = format!("return String(Number((() => {{ {top} }})()) > {})", before.as_str().unwrap());
    browser.until_run("there is room for all", &has_moved, "true").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((flood, slow));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_brings_the_token_ends_a_connection() {
    let site = Site::start().await;
    let subscriber = site.stalled_subscriber("some:").await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/connections")).await;
    browser.reads(subscriber.peer()).await;
    browser.reads("To end a connection, log in").await;
    let end = format!("End the connection of {}", subscriber.peer());
    assert!(browser.all("button", &end).await.is_empty(), "whoever only looks is not offered it");

    browser.click("button", "Log in").await;
    browser.write("textbox", "Token", "not-the-token-at-all").await;
    browser.press(ENTER).await;
    browser.reads("this is not the token").await;
    browser.check("the login with an error").await;
    browser.write("textbox", "Token", TOKEN).await;
    browser.press(ENTER).await;
    browser.reads("Log out (operator)").await;

    browser.click("button", &end).await;
    browser.reads("What waits for it is lost").await;
    browser.check("the question whether one is sure").await;
    browser.click("button", "Cancel").await;
    browser.click("button", &end).await;
    browser.click("button", "End the connection").await;
    browser.reads("was ended").await;
    subscriber.ended().await;
    browser.until("it leaves the list", |text| text.contains("Nobody is connected")).await;
    browser.picture("connections-empty").await;
    // A page that is loaded anew has the session still, and may change something with it.
    let second = site.stalled_subscriber("other:").await;
    browser.open(&site.url("#/topics")).await;
    browser.run("location.reload()", json!([])).await;
    browser.reads("Log out (operator)").await;
    browser.open(&site.url("#/connections")).await;
    browser.click("button", &format!("End the connection of {}", second.peer())).await;
    browser.click("button", "End the connection").await;
    second.ended().await;
    browser.until("it leaves the list, too", |text| text.contains("Nobody is connected")).await;
    let bare = "return fetch('/api/v1/connections/1/end', { method: 'POST', headers: { 'X-Xmsg-Page': '1' } }).then((answer) => answer.status)";
    assert_eq!(browser.run(bare, json!([])).await, 403, "the cookie alone changes nothing");
    // A session can't be read by scripts, and is not sent by other sites.
    assert_eq!(browser.run("return document.cookie", json!([])).await, json!(""));
    assert_eq!(
        browser.mistakes().await.iter().filter(|line| !line.contains("401") && !line.contains("403")).count(),
        0
    );
    browser.click("button", "Log out (operator)").await;
    browser.find("button", "Log in").await;
    browser.until_run("the secret is gone", "return String(localStorage.length)", "0").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_sorted_and_filtered() {
    let site = Site::start().await;
    let (one, other) = (site.stalled_subscriber("a:").await, site.stalled_subscriber("b:").await);
    let flow = site.flow("level:tank", "level:").await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/connections")).await;
    browser.until("both", |text| text.contains(one.peer()) && text.contains(other.peer())).await;
    browser.choose("Show", "publishers").await;
    browser.until("publishers only", |text| !text.contains(one.peer()) && text.contains("1 to 2 of 2")).await;
    browser.choose("Show", "publishers and subscribers").await;
    browser.reads("of 5").await;
    browser.write("searchbox", "Filter by address, name or number", one.peer()).await;
    browser.until("one", |text| text.contains("1 to 1 of 1") && !text.contains(other.peer())).await;
    browser.write("searchbox", "Filter by address, name or number", "nobody").await;
    browser.reads("No connection fits the filter").await;
    browser.write("searchbox", "Filter by address, name or number", ":").await;
    browser.click("button", "Messages").await;
    let sorted = "return document.querySelector('th[aria-sort]')?.textContent";
    browser.until_run("sorted by messages", sorted, "Messages").await;
    let first = "return document.querySelector('tbody tr')?.textContent ?? ''";
    xmsg_tests::within("whoever moves most comes first", async {
        loop {
            let row = browser.run(first, json!([])).await;
            let row = row.as_str().unwrap();
            if !row.is_empty() && !row.contains(one.peer()) && !row.contains(other.peer()) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    browser.check("connections").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop(flow);
    browser.close().await;
}

/// What peers choose is shown as text, whatever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_topics_are_text() {
    let site = Site::start().await;
    let hostile: [&[u8]; 4] = [
        b"<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>",
        "\u{202e}gnp.elpoep".as_bytes(),
        b"\xff\xfe<b>bold</b>",
        b"javascript:alert(1)",
    ];
    let browser = Browser::start().await;
    browser.open(&site.url("#/topics")).await;
    browser.reads("No message has come since you look").await;
    let flows = site.publish_again_and_again(&hostile).await;
    let text = browser
        .until("all of them", |text| {
            text.contains("<img src=x")
                && text.contains("gnp.elpoep")
                && text.contains("<b>bold</b>")
                && text.contains("javascript:alert(1)")
        })
        .await;
    assert!(text.contains("\\u{202e}") && text.contains("\\xff\\xfe"), "{text}");
    browser.open(&site.url("#/overview")).await;
    browser.reads("<script>").await;
    let made = browser
        .run("return document.querySelectorAll('main img, main script, main b > b, td *').length", json!([]))
        .await;
    assert_eq!(made, 0, "no element was made of it");
    assert!(!browser.run("return document.title", json!([])).await.as_str().unwrap().contains("owned"));
    browser.open(&site.url("#/topics")).await;
    browser.write("searchbox", "Filter by a part of the topic", "<img").await;
    browser.until("one", |text| text.contains("<img src=x") && !text.contains("gnp.elpoep")).await;
    browser.check("topics").await;
    browser.picture("topics-hostile").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop(flows);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_logs_in_and_the_keyboard_is_enough() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    let link = site.link();
    browser.log_in(&link).await;
    let code = link.split_once("#code=").unwrap().1;
    assert!(!browser.address().await.contains(code), "it does not stay in the address");
    // First comes what leads past all that is on every page.
    browser.run("document.body.focus(); document.activeElement.blur()", json!([])).await;
    browser.press(TAB).await;
    let focused = "return document.activeElement.textContent";
    assert_eq!(browser.run(focused, json!([])).await, "Skip to the content");
    browser.press(&TAB.repeat(3)).await;
    assert_eq!(browser.run(focused, json!([])).await, "Connections");
    browser.press(ENTER).await;
    browser.reads("Nobody is connected").await;
    assert_eq!(browser.run(focused, json!([])).await, "Connections", "the heading has the focus");
    assert_eq!(browser.run("return document.title", json!([])).await, "Connections – xmsg-proxy");
    // Whoever finds the link in the history of the browser can look, as everybody, and is told why no more.
    browser.click("button", "Log out (operator)").await;
    browser.find("button", "Log in").await;
    browser.open(&link).await;
    browser.reads("This link was used already").await;
    browser.find("button", "Log in").await;
    browser.check("a link that was used").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_shown_and_heals() {
    let mut site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("")).await;
    browser.reads("live").await;
    site.stop_http().await;
    browser.reads("connection lost").await;
    browser.picture("connection-lost").await;
    site.start_http();
    browser.until("it is back", |text| text.contains("live") && !text.contains("connection lost")).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_read_by_the_operator_alone_and_settings_by_all() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    site.log.push(b"\x1b[33m WARN\x1b[0m slow subscriber peer=<script>document.title='owned'</script>\n");
    browser.open(&site.url("#/log")).await;
    browser.reads("log in with the operator's token").await;
    assert!(!browser.text().await.contains("slow subscriber"));
    browser.log_in(&site.link()).await;
    browser.click("link", "Log").await;
    browser.reads("slow subscriber peer=<script>").await;
    site.log.push(b" INFO another line\n");
    browser.reads("another line").await;
    browser.write("searchbox", "Show lines with", "another").await;
    browser
        .until("one line", |text| text.contains("another line") && !text.contains("slow subscriber"))
        .await;
    browser.reads("those of the proxy, in UTC").await;
    browser.check("the log").await;
    browser.click("link", "Settings").await;
    browser.reads("tcp.keepalive_s").await;
    browser.write("searchbox", "Filter", "port").await;
    browser.until("one setting", |text| text.contains("7771") && !text.contains("keepalive")).await;
    browser.check("settings").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_without_a_log_says_so() {
    let site = Site::without_log().await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/log")).await;
    browser.reads("This program keeps no log of its own.").await;
    browser.log_in(&site.link()).await;
    browser.click("link", "Log").await;
    browser.reads("This program keeps no log of its own.").await;
    browser.check("no log").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}
