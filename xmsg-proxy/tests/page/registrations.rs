//! What is registered at the registrar in the same process.

use xmsg_core::{OwnerType, ProxyAddress, Registration, Topic};
use xmsg_tests::within;

use super::browser::Browser;
use super::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_registrar_the_page_says_so() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/registrations")).await;
    browser.reads("No registrar runs in this proxy. To run one").await;
    assert!(browser.all("searchbox", "Topics that begin with").await.is_empty());
    browser.check("no registrar").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_are_filtered_and_read_page_by_page() {
    let site = Site::with_registrar().await;
    let browser = Browser::start().await;
    browser.open(&site.url("#/registrations")).await;
    browser.reads("Nothing is registered. Register something, for example").await;
    browser.check("no registrations").await;
    browser.picture("registrations-empty").await;

    let client = site.registrar();
    let register = async |owner, name: &str, subject: &str| {
        let topic = Topic::new("level", subject).expect("a topic");
        let one = Registration::new(owner, name, &topic, &ProxyAddress::default());
        let one = one.with_description("measures <b>levels</b>");
        within("a registration", client.register(&one)).await.expect("it is registered");
    };
    for number in 0..149 {
        register(OwnerType::Publisher, &format!("gauge{number:03}"), &format!("tank{number:03}")).await;
    }
    register(OwnerType::Publisher, "<img src=x>\u{202e}", "zone").await;
    register(OwnerType::Subscriber, "display", "tank007").await;

    browser.reads("Registered now: 150 publishers, 1 subscribers.").await;
    browser.until("the first page", |text| text.contains("gauge099") && !text.contains("gauge100")).await;
    browser.reads("1 to 100, and there are more").await;
    browser.click("button", "Next").await;
    // Text of others is shown as text.
    let text =
        browser.until("the rest", |text| text.contains("101 to 151") && text.contains("display")).await;
    assert!(text.contains("<img src=x>\\u{202e}") && text.contains("<b>levels</b>"), "{text}");
    browser.click("button", "Previous").await;
    browser.reads("1 to 100, and there are more").await;
    browser.write("searchbox", "Topics that begin with", "level:tank007").await;
    browser.until("both of a topic", |text| text.contains("1 to 2") && text.contains("gauge007")).await;
    browser.choose("Show", "subscribers").await;
    browser.until("one", |text| text.contains("1 to 1") && !text.contains("gauge007")).await;
    let text = browser.reads("display").await;
    assert!(text.contains(" ago") && text.contains(":7771"), "{text}");
    browser.write("searchbox", "Filter by name, address or description", "nobody").await;
    browser.reads("No registration fits the filter").await;
    browser.write("searchbox", "Topics that begin with", "level").await;
    browser.choose("Show", "publishers and subscribers").await;
    browser.write("searchbox", "Filter by name, address or description", "GAUGE01").await;
    browser.until("ten", |text| text.contains("1 to 10") && text.contains("gauge019")).await;
    browser.check("registrations").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}
