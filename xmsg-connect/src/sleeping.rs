//! Sleeping until a point in time that may not be known.

use tokio::time::Instant;

/// Sleeps until this time, and for ever if there is none.
pub(crate) async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
