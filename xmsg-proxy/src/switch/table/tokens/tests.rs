use xmsg_zmq::HighWaterMark;
use xmsg_zmq::link::send_queue::SendQueue;

use super::*;
use crate::config::PublishersSend;
use crate::policy::{Policies, Policy, Rule};
use crate::switch::authorization::Authorization;
use crate::switch::publisher::ConnectedPublisher;
use crate::switch::table::Table;

fn task(memory: &MemoryBudget) -> TableTask {
    let rule = Rule { policy: Policy::BLOCK, mark: HighWaterMark::bytes(1 << 20) };
    Table::new(PublishersSend::Subscribed, Policies::new(rule, &[]), memory.clone()).1
}

fn subscriber(id: u32, peer: &str) -> Arc<ConnectedSubscriber> {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    Arc::new(ConnectedSubscriber::new(id, peer, send_queue, Authorization::new(&Arc::default(), None)))
}

/// A token that a subscriber has made up.
fn made_up(by: u32, number: usize) -> Token {
    Token { proxy: (u128::from(by) << 64) + number as u128, link: 0, connection: 0 }
}

/// Everything that is to be told is told, in one round. Returns the number of slices.
fn tell_all(task: &mut TableTask) -> usize {
    task.tokens.receivers.forget_rest();
    let mut slices = 0;
    while task.tokens.has_work() {
        task.send_slice_of_tokens();
        slices += 1;
        assert!(slices < 1000, "it comes to an end");
    }
    slices
}

fn held(task: &TableTask, subscriber: u32) -> usize {
    task.tokens.own.get(&subscriber).map_or(0, |own| own.tokens.len())
}

#[test]
fn a_token_is_told_once_and_taken_back_when_nobody_has_it_any_more() {
    let memory = MemoryBudget::default();
    let mut task = task(&memory);
    let receiver = Arc::new(ConnectedPublisher::of_test(100, "an upstream"));
    let token = Token { proxy: 1, link: 1, connection: 0 };
    let (one, other) = (subscriber(1, "one"), subscriber(2, "other"));
    let messages = || receiver.send_queue.queued().messages;
    task.change_token(true, &one, token);
    tell_all(&mut task);
    task.tell_tokens(&receiver);
    assert_eq!(messages(), 1);
    task.tell_tokens(&receiver);
    task.change_token(true, &one, token);
    task.change_token(true, &other, token);
    task.change_token(false, &one, token);
    task.change_token(false, &one, token);
    tell_all(&mut task);
    assert_eq!(messages(), 1, "somebody still has it");
    task.forget_tokens(2);
    tell_all(&mut task);
    assert_eq!(messages(), 2);
    task.change_token(true, &one, token);
    task.change_token(false, &one, token);
    tell_all(&mut task);
    assert_eq!(messages(), 2, "what is taken back at once is told to nobody");
    task.tell_no_more_tokens(100);
    task.change_token(true, &one, token);
    tell_all(&mut task);
    assert_eq!(messages(), 2);
    drop(receiver);
    assert_eq!(memory.claimed(), TOKEN, "nothing else is kept for those who come");
    task.forget_tokens(1);
    tell_all(&mut task);
    assert_eq!((task.tokens.held.len(), task.tokens.own.len(), task.tokens.shares.sources()), (0, 0, 0));
    assert_eq!((memory.claimed(), task.tokens.pairs, task.table.subscriptions()), (0, 0, 0));
}

#[test]
fn two_ways_from_one_proxy_are_found_and_a_connection_made_anew_is_none() {
    let mut task = task(&MemoryBudget::default());
    let token = |link, connection| Token { proxy: 9, link, connection };
    let (one, other) = (subscriber(1, "one"), subscriber(2, "other"));
    let double_paths = |task: &mut TableTask| {
        tell_all(task);
        task.table.double_paths()
    };
    task.change_token(true, &one, token(1, 0));
    task.change_token(true, &other, token(1, 1));
    assert_eq!(double_paths(&mut task), 0);
    task.change_token(true, &one, token(2, 0));
    task.change_token(true, &subscriber(3, "a third"), Token { proxy: 8, link: 2, connection: 0 });
    assert_eq!(double_paths(&mut task), 1, "the second link of one and the new connection of the first");
    task.change_token(false, &one, token(2, 0));
    assert_eq!(double_paths(&mut task), 0);
    task.change_token(true, &other, token(2, 0));
    assert_eq!(double_paths(&mut task), 1);
    task.forget_tokens(1);
    assert_eq!(double_paths(&mut task), 0);
}

#[test]
fn there_are_so_many_tokens_and_whoever_has_most_gives_way() {
    let memory = MemoryBudget::default();
    let mut task = task(&memory);
    // One address makes up tokens over many connections.
    for id in 0..8 {
        let peer = subscriber(id, &format!("192.0.2.1:{}", 5000 + id));
        (0..TOKENS_MAX).for_each(|number| task.change_token(true, &peer, made_up(id, number)));
    }
    assert_eq!((task.tokens.pairs, task.tokens.held.len()), (TOKENS_MAX, TOKENS_MAX));
    assert_eq!(memory.claimed(), TOKENS_MAX * TOKEN);
    let shares: Vec<_> = (0..8).map(|id| held(&task, id)).collect();
    assert!(shares.iter().all(|share| share.abs_diff(TOKENS_MAX / 8) <= 1), "{shares:?}");
    assert!(task.tokens.left_out > 7 * TOKENS_MAX as u64 - 100);
    // A proxy at another address, and one at the same, find their places, and keep them.
    let real = Token { proxy: u128::MAX, link: 1, connection: 0 };
    let (elsewhere, there) = (subscriber(90, "192.0.2.2:5000"), subscriber(91, "192.0.2.1:6000"));
    task.change_token(true, &elsewhere, real);
    task.change_token(true, &there, Token { link: 2, ..real });
    for id in 100..200 {
        let peer = subscriber(id, &format!("192.0.2.1:{}", 5000 + id));
        (0..100).for_each(|number| task.change_token(true, &peer, made_up(id, number)));
    }
    assert_eq!((held(&task, 90), held(&task, 91)), (1, 1));
    assert_eq!(task.tokens.pairs, TOKENS_MAX);
    // The oldest ones of those who have to give way stay.
    let own = &task.tokens.own[&0];
    assert!(own.tokens.iter().enumerate().all(|(place, token)| *token == made_up(0, place)));
    // What lost its place and is taken back means nothing.
    task.change_token(false, &subscriber(0, "192.0.2.1:5000"), made_up(0, TOKENS_MAX - 1));
    assert_eq!(task.tokens.pairs, TOKENS_MAX);
    (0..200).for_each(|id| task.forget_tokens(id));
    tell_all(&mut task);
    assert_eq!((task.tokens.pairs, task.tokens.shares.sources(), memory.claimed()), (0, 0, 0));
    assert!(task.tokens.receivers.is_empty() && task.tokens.doubled.is_empty());
}

#[test]
fn whoever_has_less_than_its_part_gets_it() {
    let mut task = task(&MemoryBudget::default());
    let peers: Vec<_> = (0..3).map(|id| subscriber(id, &format!("192.0.2.{id}:5000"))).collect();
    for peer in &peers {
        (0..TOKENS_MAX).for_each(|number| task.change_token(true, peer, made_up(peer.id, number)));
    }
    let parts = [held(&task, 0), held(&task, 1), held(&task, 2)];
    assert!(parts.iter().all(|part| part.abs_diff(TOKENS_MAX / 3) <= 1), "{parts:?}");
    // Within a source it is the same, also where another source has most.
    let (one, other) = (subscriber(10, "192.0.2.1:6000"), subscriber(11, "192.0.2.1:6001"));
    for peer in [&one, &other] {
        (0..TOKENS_MAX).for_each(|number| task.change_token(true, peer, made_up(peer.id, number)));
    }
    let parts = [held(&task, 1), held(&task, 10), held(&task, 11)];
    assert!(parts.iter().all(|part| part.abs_diff(TOKENS_MAX / 9) <= 1), "{parts:?}");
}

#[test]
fn whoever_holds_the_tokens_is_who_is_ended_for_them() {
    let memory = MemoryBudget::new(100 * TOKEN);
    let mut task = task(&memory);
    let (innocent, hostile) = (subscriber(1, "192.0.2.2:5000"), subscriber(2, "192.0.2.1:5000"));
    task.change_token(true, &innocent, made_up(1, 0));
    (0..200).for_each(|number| task.change_token(true, &hostile, made_up(2, number)));
    assert!(hostile.outsized.is_cancelled() && !innocent.outsized.is_cancelled());
}

#[test]
fn many_forwarders_are_told_in_slices_and_share_what_is_told() {
    let memory = MemoryBudget::default();
    let mut task = task(&memory);
    let one = subscriber(1, "one");
    (0..TOKENS_MAX).for_each(|number| task.change_token(true, &one, made_up(1, number)));
    tell_all(&mut task);
    let forwarders: Vec<_> =
        (1000..2000).map(|id| Arc::new(ConnectedPublisher::of_test(id, "forwarder"))).collect();
    for forwarder in &forwarders {
        task.tell_tokens(forwarder);
    }
    let len = forwarders[0].send_queue.queued().bytes as usize;
    assert!(len > TOKENS_MAX * 50);
    assert!(memory.claimed() < TOKENS_MAX * TOKEN + 2 * len, "all have the same bytes");
    task.forget_tokens(1);
    task.tokens.receivers.forget_rest();
    task.send_slice_of_tokens();
    let informed = || forwarders.iter().filter(|one| one.send_queue.queued().messages == 2).count();
    assert_eq!(informed(), 256, "one slice");
    // One that comes within a round is told the same as all, once.
    let late = Arc::new(ConnectedPublisher::of_test(3000, "a late one"));
    task.tell_tokens(&late);
    tell_all(&mut task);
    assert_eq!(informed(), 1000);
    assert_eq!(late.send_queue.queued().bytes, forwarders[0].send_queue.queued().bytes);
    assert_eq!(late.send_queue.queued().messages, 2);
}

#[test]
fn what_is_kept_for_those_who_come_is_made_anew_after_some_rounds() {
    let mut task = task(&MemoryBudget::default());
    let (one, receiver) = (subscriber(1, "one"), Arc::new(ConnectedPublisher::of_test(100, "a forwarder")));
    task.tell_tokens(&receiver);
    let mut most = 0;
    for number in 0..300 {
        task.change_token(true, &one, made_up(1, number));
        tell_all(&mut task);
        let new = Arc::new(ConnectedPublisher::of_test(1000 + number as u32, "a new one"));
        task.tell_tokens(&new);
        most = most.max(new.send_queue.queued().messages);
        let parts: u64 =
            task.tokens.all(new.version, &task.memory).iter().map(|part| part.len() as u64).sum();
        assert_eq!(parts as usize, (number + 1) * told_len());
        task.tell_no_more_tokens(new.id);
    }
    assert!((10..80).contains(&most), "{most} parts");
}

#[test]
fn a_token_that_comes_late_from_one_with_too_many_is_told_on_its_way() {
    let mut task = task(&MemoryBudget::default());
    let (link, receiver) =
        (subscriber(1, "a link"), Arc::new(ConnectedPublisher::of_test(100, "an upstream")));
    (0..2 * TOKENS_MAX).for_each(|number| task.change_token(true, &link, made_up(1, number)));
    tell_all(&mut task);
    task.tell_tokens(&receiver);
    let real = Token { proxy: u128::MAX, link: 1, connection: 0 };
    task.change_token(true, &link, real);
    tell_all(&mut task);
    assert_eq!(receiver.send_queue.queued().messages, 2);
    assert!(task.tokens.held.contains_key(&real) && task.tokens.held.contains_key(&made_up(1, 0)));
    assert_eq!(task.tokens.pairs, TOKENS_MAX);
}

/// Subscribers with one token each that is made up have all places, and the real one comes last, from the
/// same source.
#[test]
fn a_token_that_comes_late_behind_subscribers_with_one_each_is_told_on_its_way() {
    let mut task = task(&MemoryBudget::default());
    for id in 0..2 * TOKENS_MAX as u32 {
        task.change_token(true, &subscriber(id, &format!("192.0.2.1:{}", 5000 + id)), made_up(id, 0));
    }
    tell_all(&mut task);
    let receiver = Arc::new(ConnectedPublisher::of_test(9_000, "an upstream"));
    task.tell_tokens(&receiver);
    let real = Token { proxy: u128::MAX, link: 1, connection: 0 };
    task.change_token(true, &subscriber(9_001, "192.0.2.1:4000"), real);
    assert!(task.tokens.held.contains_key(&real));
    // Some more come before the next round.
    for id in 10_000..10_000 + TOKENS_MAX as u32 / 2 {
        task.change_token(true, &subscriber(id, &format!("192.0.2.1:{id}")), made_up(id, 0));
    }
    tell_all(&mut task);
    assert_eq!(receiver.send_queue.queued().messages, 2);
    assert!(task.tokens.receivers.knows(real));
    assert_eq!(task.tokens.pairs, TOKENS_MAX);
}

/// Bytes of a token that is told.
fn told_len() -> usize {
    let mut bytes = bytes::BytesMut::new();
    xmsg_zmtp::Version::V3_1.write_subscription(&mut bytes, true, &made_up(1, 1).topic());
    bytes.len()
}

#[test]
fn the_first_tokens_of_all_are_told_before_the_others_of_one() {
    let mut task = task(&MemoryBudget::default());
    let (hostile, real) = (subscriber(1, "192.0.2.1:5000"), subscriber(2, "192.0.2.2:5000"));
    (0..500).for_each(|number| task.change_token(true, &hostile, made_up(1, number)));
    // Its number is larger than those that are made up.
    let token = Token { proxy: u128::MAX, link: 1, connection: 0 };
    task.change_token(true, &real, token);
    let all = task.tokens.held.keys().copied().collect();
    let order = task.tokens.in_turn(&all);
    assert_eq!(order.len(), 501);
    assert_eq!(order[..3], [made_up(1, 0), token, made_up(1, 1)]);
}
