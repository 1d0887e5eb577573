//! What a reload would change, before it is asked for.

use xmsg_proxy::admin::PendingChanges;
use xmsg_proxy::settings::{ProxySettings, SettingsError, merge, parse};

use super::browser::Browser;
use super::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reload_would_change_is_shown_before() {
    let site = Site::start().await;
    let browser = Browser::start().await;
    let now = |pending| *site.pending.lock().expect("nobody panics with it") = pending;
    browser.open(&site.url("#/settings")).await;
    browser.reads("The proxy was started without a settings file").await;

    let read = |text| parse::<ProxySettings>(text, "xmsg-proxy.toml").expect("settings");
    let (_, changes) =
        merge(&read("linger_s = 1"), &read("port = 9000\nlinger_s = 2")).expect("they make sense");
    now(Ok(PendingChanges { has_file: true, changes, contents: vec![("admin.token_file", true)] }));
    let text = browser.reads("SIGHUP would take over 2 of 3 changes; the others need a restart.").await;
    let row = |setting: &str| text.lines().find(|line| line.starts_with(setting)).unwrap_or_default();
    assert!(row("linger_s\t").contains("taken over by a reload"), "{text}");
    assert!(row("port\t").contains("9000") && row("port\t").contains("needs a restart"), "{text}");
    assert!(row("admin.token_file\t").contains("another content"), "{text}");
    browser.find("region", "What a reload would change").await;
    browser.check("what a reload would change").await;
    browser.picture("settings-changes-light").await;
    browser.dark(true).await;
    browser.check("what a reload would change, dark").await;
    browser.picture("settings-changes-dark").await;
    browser.resize(390, 844).await;
    browser.check("what a reload would change, on a phone").await;

    now(Err(SettingsError::new("xmsg-proxy.toml, line 3: there is no setting \"prot\"")));
    browser
        .reads("A reload would change nothing, because the settings can't be used: xmsg-proxy.toml, line 3")
        .await;
    now(Ok(PendingChanges { has_file: true, ..PendingChanges::default() }));
    browser.reads("The settings file says what is in force").await;
    assert_eq!(browser.mistakes().await, Vec::<String>::new());
    browser.close().await;
}
