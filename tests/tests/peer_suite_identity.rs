//! Tests from the test suites of the other implementations about identities: Java `IdentityGeneratorTest` and
//! the older `xMsgConnectionFactoryTest`, C++ `zhelper_test`, Python `test_IdentityGenerator`.

use std::collections::HashSet;

use xmsg_core::id::ReplyTopics;
use xmsg_core::{ActorId, ConnectionId};

fn ids() -> Vec<String> {
    (0..100).map(|_| ConnectionId::random().to_string()).collect()
}

/// Corresponds to Java `ctrlIdentityHas9Digits`, C++ `RandomControlId.NineDigitsLong`, Python
/// `test_ctrlId_has_nine_digits`.
#[test]
fn a_connection_id_has_nine_digits() {
    for id in ids() {
        assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
    }
}

/// Corresponds to Java `ctrlIdentityPrefixHas3Digits`, C++ `SameThreeDigitsPrefix`, Python
/// `test_ctr_id_prefix_has_three_digits`.
#[test]
fn three_digits_are_those_of_the_node() {
    let prefixes: HashSet<_> = ids().iter().map(|id| id[1..4].to_owned()).collect();
    assert_eq!(prefixes.len(), 1);
}

/// Corresponds to Java `ctrlIdentityFourthDigitIsJavaIdentifier`, C++ `FourthDigitIsCppIdentifier`, Python
/// `test_ctrl_id_first_digit_is_python_identifier`. Their digits are 1, 2 and 3.
#[test]
fn the_first_digit_is_that_of_rust() {
    assert!(ids().iter().all(|id| id.starts_with('4')));
    assert_eq!(ConnectionId::random().language(), 4);
}

/// Corresponds to Java `ctrlIdentityPrefixLastFiveDigitsAreRandom`, C++ `RamdomLastFiveDigits`, Python
/// `test_last_five_digits_are_random`.
#[test]
fn the_last_five_digits_are_random() {
    // Of 100 random numbers below 100,000 some may be equal, but hardly ten.
    let suffixes: HashSet<_> = ids().iter().map(|id| id[4..].to_owned()).collect();
    assert!(suffixes.len() > 90, "{suffixes:?}");
}

/// Corresponds to C++ `UniqueReplyTo.GenerateUniqueReplyTo`, `OverflowUniqueReplyTo`. Threads share the
/// serial numbers, which wrap around.
#[test]
fn a_million_reply_topics_differ_and_then_come_round() {
    const THREADS: usize = 4;
    const EACH: usize = 1_000_000 / THREADS;
    let actor = ActorId::random();
    let topics = ReplyTopics::new(actor);
    let start = format!("ret:{actor}:4");
    let serial = || {
        let topic = topics.next_topic().to_string();
        let digits = topic.strip_prefix(&start).unwrap_or_else(|| panic!("{topic} starts with {start}"));
        assert_eq!(digits.len(), 6, "{topic}");
        digits.parse::<usize>().unwrap()
    };
    let first = serial();
    let mut seen = vec![false; 1_000_000];
    seen[first] = true;
    std::thread::scope(|scope| {
        let count = |thread| if thread == 0 { EACH - 1 } else { EACH };
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || (0..count(thread)).map(|_| serial()).collect::<Vec<_>>()))
            .collect();
        for thread in threads {
            for serial in thread.join().unwrap() {
                assert!(!std::mem::replace(&mut seen[serial], true), "{serial} came twice");
            }
        }
    });
    assert!(seen.iter().all(|seen| *seen));
    assert_eq!(serial(), first);
    assert_eq!(serial(), (first + 1) % 1_000_000);
}

/// Corresponds to C++ `UniqueReplyTo.EncodeIdentity`: eight hexadecimal digits.
#[test]
fn an_actor_id_has_eight_digits() {
    let ids: HashSet<_> = (0..100).map(|_| ActorId::random().to_string()).collect();
    assert_eq!(ids.len(), 100);
    for id in ids {
        assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
}
