//! `/api/v1`: what the page shows and does, and that nobody does it who may not.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::collections::BTreeSet;
use std::net::TcpListener;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xmsg_proxy::Proxy;
use xmsg_proxy::admin::{Admin, OwnProxy, Sources, Token, Tokens};
use xmsg_tests::http::{Events, Response, ask, get, get_with, send};
use xmsg_tests::raw::{Raw, command};
use xmsg_tests::{proxy, within};
use xmsg_zmtp::Command;

const OPERATOR: &str = "operator-0123456789abcdef";
const VIEWER: &str = "viewer-0123456789abcdef";
/// What pages of ours send to log in.
const OWN: &str = "X-Xmsg-Page: 1\r\n";

struct Site {
    proxy: Proxy,
    admin: Admin,
    address: String,
}

impl Site {
    async fn start(open_to_look: bool) -> Self {
        Self::serving(tokens(OPERATOR, open_to_look), false).await
    }

    /// With these tokens, and with or without a way to the proxy for messages.
    async fn serving(tokens: Tokens, has_way: bool) -> Self {
        let proxy = proxy().start().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own_proxy = has_way.then(|| OwnProxy::new(proxy.address().clone()));
        let sources = Sources { proxy: Some(proxy.monitor()), own_proxy, ..Sources::default() };
        let admin = Admin::start(listener, "xmsg-proxy", sources, tokens, json!({ "port": 7771 }));
        let admin = admin.unwrap();
        let address = admin.address().to_string();
        Self { proxy, admin, address }
    }

    async fn subscriber(&self, prefix: &'static str) -> Raw {
        let mut subscriber = Raw::handshake(self.proxy.address().subscribe_port(), "SUB").await;
        subscriber.send(&command(&Command::Subscribe(prefix.into()))).await;
        xmsg_tests::subscribed(&self.proxy, &subscriber).await;
        subscriber
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        send(&self.address, method, path, headers, body).await
    }

    /// The status of a tap, and the first of what it tells.
    async fn taps(&self, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET /api/v1/tap?topic=a HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let has_begun = |told: &str| {
            told.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                if head.contains(" 200 ") { body.contains("event: counts") } else { !body.is_empty() }
            })
        };
        let mut told = String::new();
        within("an answer", async {
            while !has_begun(&told) {
                let mut bytes = [0; 4096];
                let len = stream.read(&mut bytes).await.unwrap();
                assert!(len > 0, "{told}");
                told.push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        })
        .await;
        (told.split(' ').nth(1).unwrap().parse().unwrap(), told)
    }

    async fn log_in(&self, token: &str, headers: &str) -> Response {
        self.send("POST", "/api/v1/session", headers, &json!({ "token": token }).to_string()).await
    }

    /// A session with this token, as the header that brings it.
    async fn session(&self, token: &str) -> String {
        self.session_and_secret(token).await.0
    }

    /// Logs in with this token. Returns the cookie, and the header that changes with it need.
    async fn session_and_secret(&self, token: &str) -> (String, String) {
        let response = self.log_in(token, OWN).await;
        assert_eq!(response.status, 200, "{}", response.body);
        brought(&response)
    }

    /// The status of an attempt to end the only connection.
    async fn end(&self, headers: &str) -> u16 {
        let id = self.proxy.subscribers()[0].id;
        self.send("POST", &format!("/api/v1/connections/{id}/end"), headers, "").await.status
    }
}

/// What the answer to a login brings: the cookie, and the header that changes with it need.
fn brought(response: &Response) -> (String, String) {
    let cookie = response.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    let secret = read(response)["secret"].as_str().unwrap().to_owned();
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    (cookie, format!("X-Xmsg-Page: {secret}\r\n"))
}

fn tokens(operator: &str, open_to_look: bool) -> Tokens {
    let token = |text| Some(Token::new(text).unwrap());
    Tokens { operator: token(operator), viewer: token(VIEWER), open_to_look, ..Tokens::default() }
}

fn read(response: &Response) -> Value {
    serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{}: {}", response.status, response.body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_need_the_operator_and_come_from_our_own_pages() {
    let site = Site::start(true).await;
    let mut subscriber = site.subscriber("a").await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let (operator, own) = site.session_and_secret(OPERATOR).await;
    let (viewer, viewers) = site.session_and_secret(VIEWER).await;
    let origin = |origin: &str| format!("Origin: {origin}\r\n");
    let ours = origin(&format!("http://{}", site.address));
    for (headers, status) in [
        (String::new(), 403),
        (OWN.to_owned(), 403),
        (bearer(VIEWER), 403),
        (bearer("operator-0123456789abcdeF"), 401),
        (format!("{viewer}{viewers}"), 403),
        // A server at another port of this host gets the cookie, and not the secret.
        (format!("{operator}{OWN}"), 403),
        (format!("{operator}{viewers}"), 403),
        // A session alone is what a page of another site could have a browser send.
        (operator.clone(), 403),
        (format!("{operator}{ours}"), 403),
        (format!("{operator}{own}{}", origin("http://evil.example")), 403),
        (format!("{operator}{own}{}", origin("null")), 403),
        (format!("{operator}{own}Sec-Fetch-Site: cross-site\r\n"), 403),
        (format!("{operator}{own}Sec-Fetch-Site: same-site\r\n"), 403),
        ("Cookie: xmsg_session=00\r\nX-Xmsg-Page: 1\r\n".to_owned(), 403),
        // A token alone would do, but a browser says that it comes from elsewhere.
        (format!("{}Sec-Fetch-Site: cross-site\r\n", bearer(OPERATOR)), 403),
    ] {
        assert_eq!(site.end(&headers).await, status, "{headers}");
    }
    assert_eq!(site.proxy.subscribers().len(), 1);
    let says = site.send("POST", "/api/v1/connections/1/end", &bearer(VIEWER), "").await;
    assert!(says.body.contains("for looking only"), "{}", says.body);
    assert_eq!(site.end(&format!("{operator}{own}{ours}Sec-Fetch-Site: same-origin\r\n")).await, 200);
    subscriber.closed().await;
    let gone = site.send("POST", "/api/v1/connections/4000000000/end", &bearer(OPERATOR), "").await;
    assert_eq!((gone.status, &read(&gone)["kind"]), (404, &json!("unknown")));
    // What was there before knows sessions, too.
    let old = site.send("POST", "/connections/1/end", &operator, "").await;
    assert_eq!(old.status, 403);
    assert!(old.body.contains("X-Xmsg-Page"), "{}", old.body);
    let counted = read(&get(&site.address, "/varz").await);
    assert_eq!(counted["admin_refused_requests"]["foreign"], 10);
}

/// Whoever gets hold of a link that was used, such as from the history of a browser, gets nowhere with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_begins_one_session() {
    let site = Site::start(true).await;
    let _subscriber = site.subscriber("a").await;
    let follow = async |code: &str, headers: &str| {
        site.send("POST", "/api/v1/session", headers, &json!({ "code": code }).to_string()).await
    };
    let link = site.admin.link().unwrap();
    let (page, code) = link.split_once("/#code=").unwrap();
    assert_eq!(page, format!("http://{}", site.address));
    assert!(site.admin.is_unused(&link) && !site.admin.is_unused(page));
    // A page of another site that a browser shows does not use it up.
    assert_eq!(follow(code, "").await.status, 403);
    let response = follow(code, OWN).await;
    assert_eq!((response.status, &read(&response)["role"]), (200, &json!("operator")), "{}", response.body);
    assert!(!site.admin.is_unused(&link));
    let (cookie, own) = brought(&response);
    assert_eq!(site.end(&format!("{cookie}{own}")).await, 200);

    for wrong in [code, "", "00112233445566778899aabbccddeeff"] {
        let response = follow(wrong, OWN).await;
        assert_eq!((response.status, &read(&response)["kind"]), (401, &json!("wrong_code")), "{wrong}");
        assert!(response.body.contains("used already") && !response.head.contains("set-cookie"));
    }
    assert_eq!(read(&get(&site.address, "/varz").await)["admin_refused_requests"]["wrong_token"], 3);
    let both = json!({ "code": code, "token": OPERATOR }).to_string();
    assert_eq!(site.send("POST", "/api/v1/session", OWN, &both).await.status, 400);
    assert_eq!(site.send("POST", "/api/v1/session", OWN, "{}").await.status, 400);

    // Only operators make others.
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let make = async |headers: &str| site.send("POST", "/api/v1/session/links", headers, "").await;
    assert_eq!(make("").await.status, 403);
    assert_eq!(make(&bearer(VIEWER)).await.status, 403);
    assert_eq!(make(&cookie).await.status, 403, "a session needs its secret");
    let answer = make(&bearer(OPERATOR)).await;
    let path = read(&answer)["path"].as_str().unwrap().to_owned();
    let link = format!("http://{}{path}", site.address);
    assert!(site.admin.is_unused(&link), "{link}");
    // It ends with the token with which it was made.
    site.admin.set_tokens(tokens("operator-fedcba9876543210", true)).unwrap();
    assert!(!site.admin.is_unused(&link));
    assert_eq!(follow(path.split_once('=').unwrap().1, OWN).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_it_is_told_to_and_with_its_token() {
    let site = Site::start(false).await;
    assert_eq!(get(&site.address, "/api/v1/overview").await.status, 401);
    let role = async |headers: &str| {
        let response = get_with(&site.address, "/api/v1/session", headers).await;
        assert_eq!(response.status, 200);
        read(&response)["role"].clone()
    };
    assert_eq!(role("").await, Value::Null);
    let (first, second) = (site.session(VIEWER).await, site.session(OPERATOR).await);
    assert_eq!((role(&first).await, role(&second).await), (json!("viewer"), json!("operator")));
    assert_eq!(get_with(&site.address, "/api/v1/overview", &first).await.status, 200);
    assert_eq!(site.send("DELETE", "/api/v1/session", &first, "").await.status, 403);
    let response = site.send("DELETE", "/api/v1/session", &format!("{first}{OWN}"), "").await;
    assert!(response.status == 200 && response.head.contains("max-age=0"), "{}", response.head);
    assert_eq!(get_with(&site.address, "/api/v1/overview", &first).await.status, 401);
    // Whoever follows what happens is cut off, too.
    let mut stream = TcpStream::connect(&site.address).await.unwrap();
    let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n{second}\r\n", site.address);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut told = String::new();
    within("an event", async {
        while !told.contains("event: overview") {
            let mut bytes = [0; 4096];
            let len = stream.read(&mut bytes).await.unwrap();
            assert!(len > 0, "{told}");
            told.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
    })
    .await;
    assert!(told.contains("content-type: text/event-stream"), "{told}");
    site.admin.set_tokens(tokens("another-0123456789abcdef", false)).unwrap();
    let mut rest = Vec::new();
    within("the end of the answer", async {
        // The connection stays for the next request; the answer ends with an empty chunk.
        while !rest.ends_with(b"0\r\n\r\n") {
            let mut bytes = [0; 4096];
            let len = stream.read(&mut bytes).await.unwrap();
            assert!(len > 0);
            rest.extend_from_slice(&bytes[..len]);
        }
    })
    .await;
    assert_eq!(role(&second).await, Value::Null);
    assert_eq!(site.log_in(OPERATOR, OWN).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_comes_from_our_own_page_too() {
    let site = Site::start(true).await;
    for headers in ["", "X-Xmsg-Page: 1\r\nOrigin: http://evil.example\r\n"] {
        let response = site.log_in(OPERATOR, headers).await;
        assert_eq!((response.status, &read(&response)["kind"]), (403, &json!("foreign")), "{headers}");
        assert!(!response.head.contains("set-cookie"), "{}", response.head);
    }
    let wrong = site.log_in("operator-0123456789abcdeF", OWN).await;
    assert_eq!((wrong.status, &read(&wrong)["field"]), (401, &json!("token")));
    let bad = site.send("POST", "/api/v1/session", OWN, "{\"tokn\": 1}").await;
    assert_eq!(bad.status, 400);
    let behind_tls = site.log_in(OPERATOR, &format!("{OWN}X-Forwarded-Proto: https\r\n")).await;
    assert!(behind_tls.head.contains("; secure"), "{}", behind_tls.head);
}

/// The viewer's token is for those who are far away, where the ports of the proxy may not be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_sees_of_messages_what_it_may() {
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (open_to_look, viewer_may_watch, nobodys, viewers) in
        [(true, false, 200, 403), (true, true, 200, 200), (false, false, 401, 403), (false, true, 401, 200)]
    {
        let site = Site::serving(Tokens { viewer_may_watch, ..tokens(OPERATOR, open_to_look) }, true).await;
        for (headers, status, may_publish) in [
            (String::new(), nobodys, nobodys.max(403)),
            (bearer(VIEWER), viewers, 403),
            (site.session(VIEWER).await, viewers, 403),
            (bearer(OPERATOR), 200, 200),
            (site.session(OPERATOR).await, 200, 403),
        ] {
            let (found, told) = site.taps(&headers).await;
            assert_eq!(found, status, "{headers}: {told}");
            assert!(status != 403 || told.contains("admin.viewer_may_watch"), "{told}");
            let who = read(&get_with(&site.address, "/api/v1/session", &headers).await);
            assert_eq!(who["may_watch"], status == 200, "{headers}: {who}");
            // The rest is there for all who may look.
            let overview = get_with(&site.address, "/api/v1/overview", &headers).await.status;
            assert_eq!(overview, if headers.is_empty() { nobodys } else { 200 });
            let published =
                site.send("POST", "/api/v1/publish", &headers, r#"{"topic": "a", "text": "b"}"#).await;
            let expected = if headers.is_empty() && !open_to_look { 401 } else { may_publish };
            assert_eq!(published.status, expected, "{headers}: {}", published.body);
        }
    }
}

/// Its rules say who may publish, and the page has no name in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_way_to_the_proxy_nobody_publishes() {
    let site = Site::start(true).await;
    let operator = format!("Authorization: Bearer {OPERATOR}\r\n");
    let session = read(&get_with(&site.address, "/api/v1/session", &operator).await);
    assert_eq!((&session["can_publish"], &session["may_watch"]), (&json!(false), &json!(true)));
    let published = site.send("POST", "/api/v1/publish", &operator, r#"{"topic": "a", "text": "b"}"#).await;
    assert!(published.status == 403 && published.body.contains("has security"), "{}", published.body);
}

/// A name that somebody has made to lead here gets nothing, not even the page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_of_this_machine_get_nothing() {
    let site = Site::start(true).await;
    for path in ["/api/v1/overview", "/api/v1/session", "/page/js/app.js", "/", "/api/v1/openapi.json"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: evil.example\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        );
        let response = ask(&site.address, request.as_bytes()).await.unwrap();
        assert_eq!(response.status, 403, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_may_take_nothing_from_elsewhere() {
    for open_to_look in [true, false] {
        let site = Site::start(open_to_look).await;
        let page = get_with(&site.address, "/", "Accept: text/html\r\n").await;
        assert_eq!(page.status, 200);
        assert!(page.body.contains("/page/js/app.js"), "{}", page.body);
        for part in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
            "content-type: text/html",
        ] {
            assert!(page.head.contains(part), "{part}: {}", page.head);
        }
        let script = get(&site.address, "/page/js/app.js").await;
        assert!(
            script.status == 200 && script.head.contains("content-type: text/javascript"),
            "{}",
            script.head
        );
        let tag = script.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
        let known = get_with(&site.address, "/page/js/app.js", &format!("If-None-Match: {tag}\r\n")).await;
        assert_eq!((known.status, &*known.body), (304, ""));
        for path in ["/page/", "/page/../Cargo.toml", "/page/js/none.js"] {
            assert!([401, 404].contains(&get(&site.address, path).await.status), "{path}");
        }
    }
}

/// Programs ask as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_is_described_and_answers_as_it_says() {
    let site = Site::start(true).await;
    let index = get(&site.address, "/").await;
    assert!(
        index.body.starts_with("xmsg-proxy ") && index.body.contains("/api/v1/openapi.json"),
        "{}",
        index.body
    );
    let document = read(&get(&site.address, "/api/v1/openapi.json").await);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{document}");
    let paths = document["paths"].as_object().unwrap();
    let known: BTreeSet<_> = paths.keys().map(String::as_str).collect();
    for path in [
        "/api/v1/session",
        "/api/v1/overview",
        "/api/v1/events",
        "/api/v1/history",
        "/api/v1/connections",
        "/api/v1/stats",
        "/api/v1/session/links",
        "/api/v1/topics",
        "/api/v1/registrations",
        "/api/v1/topology",
        "/api/v1/settings/changes",
    ] {
        assert!(known.contains(path), "{path}");
    }
    for (path, methods) in paths {
        let Some(answer) = methods.get("get") else { continue };
        if answer["responses"]["200"]["content"].get("text/event-stream").is_some() {
            continue;
        }
        let response = get(&site.address, path).await;
        assert_eq!(response.status, 200, "{path}: {}", response.body);
        let schema = &answer["responses"]["200"]["content"]["application/json"]["schema"];
        let Some(name) = schema["$ref"].as_str() else { continue };
        let schema = &document["components"]["schemas"][name.rsplit('/').next().unwrap()];
        let found = read(&response);
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(
                found.get(required.as_str().unwrap()).is_some(),
                "{path}: {required} is missing in {found}"
            );
        }
    }
    for path in [
        "/api/v1/connections?limit=1001",
        "/api/v1/connections?sort=x",
        "/api/v1/history?span=2h",
        "/api/v1/topics?x=1",
        "/api/v1/registrations?limit=1001",
        "/api/v1/registrations?kind=x",
        "/api/v1/topology?limit=101",
    ] {
        assert_eq!(get(&site.address, path).await.status, 400, "{path}");
    }
    assert_eq!(get(&site.address, "/api/v1/none").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_topics_are_found() {
    let site = Site::start(true).await;
    let _subscriber = site.subscriber("a").await;
    let mut publisher = Raw::handshake(site.proxy.address().publish_port(), "PUB").await;
    // Somebody has to look before topics are counted.
    assert_eq!(read(&get(&site.address, "/api/v1/topics").await)["total"], 0);
    let overview = within("messages are counted", async {
        loop {
            publisher.send_message(&[&b"a:<1>"[..], b"", b"x"]).await;
            let found = read(&get(&site.address, "/api/v1/overview").await);
            if found["topics_known"] == 1 && found["now"]["received"].as_f64() > Some(0.0) {
                return found;
            }
        }
    })
    .await;
    assert_eq!(
        (&overview["publishers"], &overview["subscribers"], &overview["phase"]),
        (&json!(1), &json!(1), &json!("ready"))
    );
    let topics = read(&get(&site.address, "/api/v1/topics?filter=%3C1").await);
    assert_eq!((&topics["matching"], &topics["topics"][0]["topic"]), (&json!(1), &json!("a:<1>")));
    assert_eq!(read(&get(&site.address, "/api/v1/topics?filter=b").await)["matching"], 0);
    let list = read(&get(&site.address, "/api/v1/connections?sort=id").await);
    assert_eq!((&list["total"], &list["connections"][0]["kind"]), (&json!(2), &json!("subscriber")));
    let messages = read(&get(&site.address, "/api/v1/connections?sort=messages&limit=1").await);
    assert!(messages["connections"][0]["messages"].as_u64() > Some(0), "{messages}");
    let peer = list["connections"][1]["peer"].as_str().unwrap();
    let one = read(&get(&site.address, &format!("/api/v1/connections?filter={peer}")).await);
    assert_eq!(
        (&one["total"], &one["matching"], &one["connections"][0]["peer"]),
        (&json!(2), &json!(1), &json!(peer))
    );
    let none = read(&get(&site.address, "/api/v1/connections?kind=publisher&offset=1").await);
    assert_eq!((&none["matching"], &none["connections"]), (&json!(1), &json!([])));
    let history = read(&get(&site.address, "/api/v1/history?span=5m").await);
    assert!(history["step_s"] == 1 && !history["samples"].as_array().unwrap().is_empty(), "{history}");
    assert_eq!(read(&get(&site.address, "/api/v1/settings").await), json!({ "port": 7771 }));
}

/// Whoever opens streams and reads none of them takes places, and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_few() {
    let site = Site::start(true).await;
    let open = async |headers: &str| {
        let mut stream = TcpStream::connect(&site.address).await.unwrap();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", site.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        within("a status", stream.read_exact(&mut head)).await.unwrap();
        (stream, String::from_utf8_lossy(&head[9..]).into_owned())
    };
    let mut streams = Vec::new();
    for _ in 0..24 {
        let (stream, status) = open("").await;
        assert_eq!(status, "200");
        streams.push(stream);
    }
    assert_eq!(open("").await.1, "503");
    // Some are for operators alone.
    let operator = format!("Authorization: Bearer {OPERATOR}\r\n");
    for _ in 0..8 {
        let (stream, status) = open(&operator).await;
        assert_eq!(status, "200");
        streams.push(stream);
    }
    assert_eq!(open(&operator).await.1, "503");
    streams.clear();
    within("a place is free again", async { while open("").await.1 != "200" {} }).await;
}

/// A page of another site could open all streams in the browser of somebody on this machine, though it could
/// read none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_open_no_stream() {
    let site = Site::start(true).await;
    let address = &site.address;
    let document = read(&get(address, "/api/v1/openapi.json").await);
    let is_stream =
        |methods: &Value| methods["get"]["responses"]["200"]["content"].get("text/event-stream").is_some();
    let paths = document["paths"].as_object().unwrap();
    let streams: Vec<_> =
        paths.iter().filter(|(_, methods)| is_stream(methods)).map(|(path, _)| path).collect();
    assert!(streams.len() >= 3, "{streams:?}");
    let operator = format!("Authorization: Bearer {OPERATOR}\r\n");
    let mut counted = 0;
    for path in streams {
        for foreign in [
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n",
            "Sec-Fetch-Site: same-site\r\n",
            "Origin: http://evil.example\r\n",
            "Origin: null\r\n",
        ] {
            for headers in [foreign.to_owned(), format!("{foreign}{operator}")] {
                let refusal = Events::open(address, path, &headers).await.unwrap_err();
                assert_eq!(refusal.status, 403, "{path}: {headers}");
                assert!(refusal.body.contains("another site or port"), "{}", refusal.body);
                counted += 1;
            }
        }
        if path == "/api/v1/log" {
            let session = read(&get_with(address, "/api/v1/session", &operator).await);
            assert_eq!(session["has_log"], false, "this process keeps no log of its own");
            let refusal = Events::open(address, path, &operator).await.unwrap_err();
            assert_eq!(refusal.status, 404, "{}", refusal.body);
            continue;
        }
        for own in ["Sec-Fetch-Site: same-origin\r\n".to_owned(), format!("Origin: http://{address}\r\n")] {
            assert!(Events::open(address, path, &own).await.is_ok(), "{path}: {own}");
        }
    }
    let counts = read(&get(address, "/varz").await);
    assert_eq!(counts["admin_refused_requests"]["foreign"], counted);
}

/// A request that asks who one is tells whether its token is right: that is a guess as any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_a_wrong_token_also_where_everybody_may_ask() {
    for open_to_look in [true, false] {
        let site = Site::start(open_to_look).await;
        let ask = |token: &str| format!("Authorization: Bearer {token}\r\n");
        for _ in 0..3 {
            let wrong = get_with(&site.address, "/api/v1/session", &ask("operator-0123456789abcdeF")).await;
            assert_eq!(wrong.status, 401, "{}", wrong.body);
        }
        let right = get_with(&site.address, "/api/v1/session", &ask(OPERATOR)).await;
        assert_eq!(read(&right)["role"], "operator");
        assert_eq!(read(&get(&site.address, "/api/v1/session").await)["role"], Value::Null);
        let metrics = get_with(&site.address, "/metrics", &ask(OPERATOR)).await;
        let counted = "xmsg_proxy_admin_refused_requests_total{reason=\"wrong_token\"} 3\n";
        assert!(metrics.body.contains(counted), "{}", metrics.body);
    }
}

/// All connections may be of clients that announce a body and never send it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_that_never_arrive_keep_nobody_out() {
    let site = Site::start(true).await;
    let head =
        format!("POST /api/v1/session HTTP/1.1\r\nHost: {}\r\nContent-Length: 10\r\n{OWN}\r\n", site.address);
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut stream = within("connect", TcpStream::connect(&site.address)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    let started = std::time::Instant::now();
    assert_eq!(get(&site.address, "/healthz").await.status, 200);
    assert_eq!(site.log_in(OPERATOR, OWN).await.status, 200);
    // The time limit of such a login would have to pass first, and is no way in for others.
    assert!(started.elapsed() < std::time::Duration::from_secs(4), "{:?}", started.elapsed());
    // What comes too late, or is no login, is refused.
    let long = site.send("POST", "/api/v1/session", OWN, &"x".repeat(9 << 10)).await;
    assert_eq!(long.status, 400);
}
