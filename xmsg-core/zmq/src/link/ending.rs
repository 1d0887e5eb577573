//! Ending thousands of connections a few at a time. The clean-up of each one delays everything else.

use std::time::Duration;

/// How many connections are checked and ended before other tasks run.
const SLICE: usize = 32;
/// How many times to wait a [`MOMENT`] for ended connections to be gone before the next slice.
const MOMENTS: usize = 20;
const MOMENT: Duration = Duration::from_millis(1);

/// Calls `end` for all connections, slice by slice; `end` returns whether it has ended one. After each slice,
/// waits for a short time until those that were ended are gone.
pub async fn end_some_at_a_time<T>(all: &[T], end: impl Fn(&T) -> bool, is_gone: impl Fn(&T) -> bool) {
    for slice in all.chunks(SLICE) {
        let mut ended: Vec<_> = slice.iter().filter(|one| end(one)).collect();
        tokio::task::yield_now().await;
        for _ in 0..MOMENTS {
            ended.retain(|one| !is_gone(one));
            if ended.is_empty() {
                break;
            }
            // The tasks of the connections may run on other threads.
            tokio::time::sleep(MOMENT).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const COUNT: usize = 10 * SLICE + 1;

    #[tokio::test(start_paused = true)]
    async fn no_more_are_ended_than_have_gone_and_nobody_keeps_the_rest() {
        let (ended, most, is_stuck): (Cell<usize>, Cell<usize>, _) =
            (Cell::new(0), Cell::new(0), Cell::new(false));
        let under_way = Cell::new(0);
        let all: Vec<_> = (0..COUNT).collect();
        let ending = async || {
            let end = |number: &usize| {
                ended.set(ended.get() + 1);
                under_way.set(under_way.get() + 1);
                most.set(under_way.get().max(most.get()));
                // Some of them are not ended.
                !number.is_multiple_of(3)
            };
            end_some_at_a_time(&all, end, |_| {
                under_way.set(0);
                !is_stuck.get()
            })
            .await;
            (ended.take(), most.take())
        };
        assert_eq!(ending().await, (COUNT, SLICE));
        is_stuck.set(true);
        let start = tokio::time::Instant::now();
        assert_eq!(ending().await.0, COUNT);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
