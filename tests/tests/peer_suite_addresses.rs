//! Tests from the test suites of the other implementations about addresses and setups: Python
//! `test_xMsgAddress` and `test_xMsgConnectionSetup`, Java `xMsgSetupTest` and `xMsgUtilTest`, C++
//! `util_test`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use xmsg_core::address::{DEFAULT_PROXY_PORT, DEFAULT_REGISTRAR_PORT};
use xmsg_core::{Actor, ConnectOptions, ErrorKind, ProxyAddress, RegistrarAddress};
use xmsg_tests::{proxy, topic};
use xmsg_zmq::HighWaterMark;

/// Corresponds to Python `test_RegAddress_empty_constructor`, `…_only_with_hostname`,
/// `…_with_all_parameters`.
#[test]
fn a_registrar_has_a_host_and_a_port() {
    let default = RegistrarAddress::default();
    assert_eq!((default.host(), default.port()), ("127.0.0.1", DEFAULT_REGISTRAR_PORT));
    let of_host: RegistrarAddress = "10.1.2.3".parse().unwrap();
    assert_eq!((of_host.host(), of_host.port()), ("10.1.2.3", 8888));
    let of_both = RegistrarAddress::new("10.1.2.3", 7777).unwrap();
    assert_eq!(of_both.endpoint(), "tcp://10.1.2.3:7777");
}

/// Corresponds to Python `test__equal__operator_true`, `test__equal__operator_false`.
#[test]
fn registrars_are_equal_when_host_and_port_are() {
    let address = |host, port| RegistrarAddress::new(host, port).unwrap();
    assert_eq!(address("10.1.2.3", 80), address("10.1.2.3", 80));
    assert_ne!(address("10.1.2.3", 80), address("10.1.2.3", 81));
    assert_ne!(address("10.1.2.3", 80), address("10.1.2.4", 80));
}

/// Corresponds to Python `test_ProxyAddress_empty_constructor`, `…_only_with_hostname`,
/// `…_only_with_hostname_and_pub_port`.
#[test]
fn a_proxy_has_its_ports_in_a_row() {
    let ports =
        |address: &ProxyAddress| (address.publish_port(), address.subscribe_port(), address.control_port());
    let default = ProxyAddress::default();
    assert_eq!((default.host(), ports(&default)), ("127.0.0.1", (DEFAULT_PROXY_PORT, 7772, 7773)));
    let of_host: ProxyAddress = "10.1.2.3".parse().unwrap();
    assert_eq!((of_host.host(), ports(&of_host)), ("10.1.2.3", (7771, 7772, 7773)));
    let of_both = ProxyAddress::new("10.1.2.3", 1111).unwrap();
    assert_eq!(ports(&of_both), (1111, 1112, 1113));
    assert_eq!(of_both.to_string(), "10.1.2.3:1111");
}

/// Corresponds to Java `xMsgUtilTest.checkValidIPs`, C++ `ip_utils.check_valid_ips`.
#[test]
fn ip_addresses_are_hosts() {
    for host in ["10.0.0.1", "0.0.0.0", "255.255.255.255", "127.0.0.1", "172.16.254.3"] {
        assert_eq!(host.parse::<ProxyAddress>().unwrap().host(), host);
    }
}

/// Corresponds to Java `xMsgUtilTest.checkOnlyIPv4`, C++ `check_only_ip_v4`. They know only IPv4, while this
/// project accepts IPv6, too.
#[test]
fn ipv6_addresses_are_hosts_too() {
    for host in ["2001:db8::17", "2001:db8:0:0:0:0:0:17", "::1"] {
        assert_eq!(ProxyAddress::new(host, 7771).unwrap().to_string(), format!("[{host}]:7771"));
    }
    assert_eq!(ProxyAddress::new("[::1", 7771).unwrap_err().kind(), ErrorKind::InvalidAddress);
}

/// Corresponds to Java `xMsgSetupTest.defaultValues`, `customValues`. The size of the thread pool has no
/// counterpart.
#[tokio::test]
async fn an_actor_has_the_addresses_that_it_was_given() {
    let actor = Actor::builder("a").proxy("10.1.2.3").registrar("10.1.2.4:99").build().unwrap();
    assert_eq!(*actor.proxy(), ProxyAddress::new("10.1.2.3", 7771).unwrap());
    assert_eq!(*actor.registrar(), RegistrarAddress::new("10.1.2.4", 99).unwrap());
    assert_eq!(actor.name(), "a");
}

/// Corresponds to Python `test_check_socket_HWM_pub`: the hook before connecting sets the options of each
/// socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_in_their_order_for_a_real_connection() {
    let proxy = proxy().start().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let order = order.clone();
        move |_: &ProxyAddress| order.lock().unwrap().push(what)
    };
    let (before_connect, before_subscribe) = (note("before connecting"), note("before subscribing"));
    let setup = ConnectOptions::new()
        .connection_timeout(Duration::from_secs(60))
        .subscription_timeout(Duration::from_secs(60))
        .before_connect(move |socket, address| {
            before_connect(address);
            socket.send_high_water_mark(HighWaterMark::bytes(1 << 20))
        })
        .after_connect(note("after connecting"))
        .before_subscribe(move |socket, address| {
            assert_eq!(socket.settings().send_high_water_mark.bytes, 1 << 20, "the other hook came first");
            before_subscribe(address);
            socket
        })
        .after_subscribe(note("after subscribing"));
    let connection = xmsg_core::Connection::with_options(proxy.address().clone(), setup).unwrap();
    connection.connect().await.unwrap();
    let connected = std::mem::take(&mut *order.lock().unwrap());
    assert_eq!(connected.first(), Some(&"before connecting"));
    assert_eq!(connected.last(), Some(&"after connecting"));
    assert!(!connected.contains(&"before subscribing"));
    let _messages = connection.subscribe([topic("a")]).await.unwrap();
    let subscribed = std::mem::take(&mut *order.lock().unwrap());
    assert!(subscribed.contains(&"before subscribing"), "{subscribed:?}");
    assert_eq!(subscribed.last(), Some(&"after subscribing"));

    // Without the checks, a connection needs no running proxy.
    let address = proxy.address().clone();
    proxy.stop(Duration::from_secs(30)).await;
    let unchecked = ConnectOptions::new().check_connection(false).check_subscription(false);
    let connection = xmsg_core::Connection::with_options(address, unchecked).unwrap();
    connection.connect().await.unwrap();
    let _messages = connection.subscribe([topic("a")]).await.unwrap();
}
