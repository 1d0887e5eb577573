//! Who publishes what to whom.

use serde_json::json;

use super::ENTER;
use super::browser::Browser;
use super::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_publishes_what_to_whom_is_seen_and_found() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/topology")).await;
    browser.reads("Nobody is connected, and no message has come").await;
    browser.check("an empty topology").await;

    let level = site.flow("level:tank", "level:").await;
    let mut stalled = Vec::new();
    for _ in 0..23 {
        stalled.push(site.stalled_subscriber("heat:").await);
    }
    let names: Vec<&'static [u8]> =
        (0..30).map(|number| &*format!("heat:oven{number:02}").leak()).map(str::as_bytes).collect();
    // Together they are slower than the other topic, so that its publisher and its subscriber are among the
    // busiest, which are shown.
    let heat = site.publish_each(&names, std::time::Duration::from_secs(1)).await;

    let box_name = "Show only what has to do with";
    // The busiest come first, and the others are counted.
    browser.find("button", "level:tank").await;
    browser
        .until("31 topics and 24 subscribers", |text| {
            text.contains("and 11 more") && text.contains("and 4 more")
        })
        .await;
    browser.click("button", "level:tank").await;
    browser
        .reads("belongs to level:tank: 1 of those that publish, 0 topics, 1 of those that subscribe")
        .await;
    let pressed = "return document.querySelector('[aria-pressed=true]')?.textContent ?? ''";
    browser.until_run("it is chosen", pressed, "level:tank").await;
    let linked = "return String(document.querySelectorAll('.topology .linked').length)";
    browser.until_run("its publisher and its subscriber are marked", linked, "2").await;
    // The topics stay as they are until the pointer and the focus have left them.
    browser.click("searchbox", box_name).await;
    browser.click("button", "heat:oven00").await;
    browser.reads("belongs to heat:oven00: 1 of those that publish, 0 topics, 19 of those that subscribe, and 4 that are not shown").await;
    browser.click("button", "level:tank").await;
    browser.until_run("it is chosen again", pressed, "level:tank").await;
    browser.check("the topology").await;
    browser.picture("topology-chosen-light").await;
    browser.dark(true).await;
    browser.check("the topology, dark").await;
    browser.picture("topology-chosen-dark").await;
    browser.dark(false).await;

    // What somebody looks for, with what belongs to it, by keyboard.
    browser.write("searchbox", box_name, "OVEN07").await;
    browser
        .until("one topic, and who has to do with it", |text| {
            text.contains("heat:oven07") && !text.contains("heat:oven08") && !text.contains("level:tank")
        })
        .await;
    browser.reads("and 3 more").await;
    browser.write("searchbox", box_name, stalled[0].peer()).await;
    browser.reads("and 10 more").await;
    browser.until("the topics of a subscriber", |text| !text.contains("level:tank")).await;
    browser.run("document.querySelector('.topology ul[aria-label=To] button').focus()", json!([])).await;
    browser.press(ENTER).await;
    browser.until_run("it is chosen by keyboard", pressed, stalled[0].peer()).await;
    browser.reads("1 of those that publish, 20 topics").await;
    browser.write("searchbox", box_name, "nobody at all").await;
    browser.reads("Nothing has to do with that").await;
    browser.resize(390, 844).await;
    browser.write("searchbox", box_name, "level").await;
    browser.find("button", "level:tank").await;
    browser.check("the topology, on a phone").await;
    browser.picture("topology-chosen-phone").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((level, heat, stalled));
    browser.close().await;
}

/// Somebody who is about to click does not hit another one, because rows have changed their places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_moves_under_the_pointer() {
    let site = Site::start().await;
    let each = |millis| std::time::Duration::from_millis(millis);
    let slow = site.publish_each(&[b"slow:one"], each(1000)).await;
    let fast = site.publish_each(&[b"fast:two"], each(50)).await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/topology")).await;
    let topics = "return [...document.querySelectorAll('.topology ul[aria-label=Topics] button')].map((node) => node.textContent).join()";
    browser.until_run("the faster one comes first", topics, "fast:two,slow:one").await;
    browser.hover("button", "slow:one").await;
    let fastest = site.publish_each(&[b"third:three"], each(5)).await;
    // The table below is not under the pointer, and has it already.
    browser.reads("third:three").await;
    assert_eq!(browser.run(topics, json!([])).await, "fast:two,slow:one");
    browser.hover("heading", "Topology").await;
    browser.until_run("each is in its place", topics, "third:three,fast:two,slow:one").await;

    // Who leaves is dimmed, and goes when the pointer has gone.
    let sources = "const all = [...document.querySelectorAll('.topology ul[aria-label=From] li')]; \
        return `${all.length} ${all.filter((node) => node.matches('.gone')).length}`";
    browser.until_run("all three", sources, "3 0").await;
    let first = "return document.querySelector('.topology ul[aria-label=From] button').textContent";
    let first = browser.run(first, json!([])).await;
    browser.hover("button", first.as_str().unwrap()).await;
    drop(fast);
    browser.until_run("one of them is dimmed", sources, "3 1").await;
    browser.picture("topology-held").await;
    browser.hover("heading", "Topology").await;
    browser.until_run("it has gone", sources, "2 0").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((slow, fastest));
    browser.close().await;
}
