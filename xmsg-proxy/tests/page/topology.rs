//! Who publishes what to whom.

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
    browser.click("button", "heat:oven00").await;
    browser.reads("belongs to heat:oven00: 1 of those that publish, 0 topics, 19 of those that subscribe, and 4 that are not shown").await;
    browser.click("button", "level:tank").await;
    browser.until_run("it is chosen again", pressed, "level:tank").await;
    browser.check("the topology").await;
    browser.picture("topology-light").await;
    browser.dark(true).await;
    browser.check("the topology, dark").await;
    browser.picture("topology-dark").await;
    browser.dark(false).await;

    // What somebody looks for, with what belongs to it, by keyboard.
    let box_name = "Show only what has to do with";
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
    browser
        .run("document.querySelector('.topology ul[aria-label=To] button').focus()", serde_json::json!([]))
        .await;
    browser.press(ENTER).await;
    browser.until_run("it is chosen by keyboard", pressed, stalled[0].peer()).await;
    browser.reads("1 of those that publish, 20 topics").await;
    browser.write("searchbox", box_name, "nobody at all").await;
    browser.reads("Nothing has to do with that").await;
    browser.resize(390, 844).await;
    browser.write("searchbox", box_name, "level").await;
    browser.find("button", "level:tank").await;
    browser.check("the topology, on a phone").await;
    browser.picture("topology-phone").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    drop((level, heat, stalled));
    browser.close().await;
}
