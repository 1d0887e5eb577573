//! Tests from the test suites of the other implementations about connection pools: Java and Python
//! `ConnectionManagerTest`, C++ `connection_pool_test`.

use std::collections::HashSet;
use std::time::Duration;

use xmsg_core::{Message, Pool};
use xmsg_tests::{connect, next, patient, proxy, topic, within};

const LINGER: Duration = Duration::from_secs(30);

/// Corresponds to Java `createProxyConnections`, C++ `ProxyConnectionTest.GetConnection`, Python
/// `test_get_proxy_connection`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_taken_differ() {
    let (first, second) = (proxy().start().await.unwrap(), proxy().start().await.unwrap());
    let pool = Pool::new(patient()).unwrap();
    let one = pool.take(first.address()).await.unwrap();
    let two = pool.take(second.address()).await.unwrap();
    let three = pool.take(second.address()).await.unwrap();
    assert_eq!(one.address(), first.address());
    assert_eq!((two.address(), three.address()), (second.address(), second.address()));
    let ids = HashSet::from([&one, &two, &three].map(|connection| connection.id()));
    assert_eq!(ids.len(), 3);
}

/// Corresponds to Java `reuseProxyConnections`, C++ `ProxyConnectionTest.ReleaseConnection`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_given_back_are_taken_again() {
    let (first, second) = (proxy().start().await.unwrap(), proxy().start().await.unwrap());
    let pool = Pool::new(patient()).unwrap();
    let mut before = Vec::new();
    for address in [first.address(), second.address(), second.address()] {
        before.push(pool.take(address).await.unwrap());
    }
    let ids = |taken: &[xmsg_core::PooledConnection]| -> (_, HashSet<_>) {
        (taken[0].id(), taken[1..].iter().map(|connection| connection.id()).collect())
    };
    let expected = ids(&before);
    drop(before);
    assert_eq!((pool.idle(first.address()), pool.idle(second.address())), (1, 2));
    let mut after = Vec::new();
    for address in [first.address(), second.address(), second.address()] {
        after.push(pool.take(address).await.unwrap());
    }
    assert_eq!(ids(&after), expected);
    // The connections work as before.
    let mut messages = connect(&second).subscribe([topic("a")]).await.unwrap();
    for connection in &after[1..] {
        connection.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap();
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), 1);
    }
    assert!(within("close", pool.close(LINGER)).await.is_nothing());
}

/// This test is not in the other suites: the number and the age of idle connections are limited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_bounded_in_number_and_time() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address();
    let pool = Pool::with_limits(patient(), 2, Duration::from_millis(200)).unwrap();
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(pool.take(address).await.unwrap());
    }
    assert_eq!(pool.idle(address), 0);
    drop(taken);
    assert!(pool.idle(address) <= 2);
    within("the end of the idle ones", async {
        while pool.idle(address) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pool.cache_connection(address).await.unwrap();
    assert!(within("close", pool.close(LINGER)).await.is_nothing());
}
