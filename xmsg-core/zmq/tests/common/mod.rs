//! Helpers for tests of sockets: time limits and endpoints.

use std::time::Duration;

use xmsg_zmq::Endpoint;

/// The time limit for every event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the output of `step`, or panics if it takes too long.
pub(crate) async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("{what}: nothing in time"))
}

/// Waits until `is_so` returns `true`.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// An endpoint with a free port of the loopback interface.
pub(crate) fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}
