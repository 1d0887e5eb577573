//! Tests of which connections are admitted and which are ended to make room for others.

use super::*;

fn admission() -> Admission {
    Admission::new(AdmissionLimits { connections: 8, handshakes: 4, handshakes_per_address: 3 })
}

fn from(admission: &Admission, address: &str) -> Option<Permit> {
    admission.admit(Some(address.parse().unwrap()), "a test")
}

#[test]
fn one_address_cannot_take_all_places_in_the_handshake() {
    let admission = admission();
    let mut own: Vec<_> = (0..3).map(|_| from(&admission, "10.0.0.1").unwrap()).collect();
    assert!(from(&admission, "10.0.0.1").is_none(), "its share is used up");
    assert!(from(&admission, "::ffff:10.0.0.1").is_none(), "by whatever name");
    let other = from(&admission, "10.0.0.2").unwrap();
    assert!(from(&admission, "10.0.0.2").is_none(), "there are four");
    let third = from(&admission, "10.0.0.3").unwrap();
    assert_eq!(admission.refused(), 3);

    own[0].established();
    drop((other, third));
    let again = from(&admission, "10.0.0.1").unwrap();
    assert!(from(&admission, "10.0.0.1").is_none());
    drop((own, again));
    let counts = admission.0.counts();
    assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
}

#[test]
fn those_in_the_handshake_count_too_and_make_room_for_others() {
    let admission = admission();
    let silent: Vec<_> = (0..2).map(|_| from(&admission, "10.0.0.1").unwrap()).collect();
    let many: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.1")).collect();
    let few: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.2")).collect();
    for permit in &many {
        permit.activity.note(now());
    }
    let newcomer = from(&admission, "10.0.0.3").expect("the first address has five of eight places");
    let given_up = |permits: &[Permit]| permits.iter().filter(|one| one.gives_way.is_cancelled()).count();
    assert_eq!([&silent, &many, &few].map(|permits| given_up(permits)), [1, 0, 0]);
    assert!(from(&admission, "10.0.0.4").is_none(), "it has half of them now");
    // A connection that was chosen to be ended is not listed as established any more.
    let mut silent = silent;
    silent.iter_mut().for_each(Permit::established);
    drop((silent, many, few, newcomer));
    let counts = admission.0.counts();
    assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
}

#[test]
fn connections_are_limited_after_the_handshake_too() {
    let admission = admission();
    let permits: Vec<_> = (0..8).map(|number| established(&admission, both(number))).collect();
    assert!(from(&admission, "10.0.0.2").is_none());
    drop(permits);
    assert!(from(&admission, "10.0.0.2").is_some());
}

/// Returns one of two addresses, so that neither has more than half of the connections.
fn both(number: usize) -> &'static str {
    ["10.0.1.1", "10.0.1.2"][number % 2]
}

/// Admits a connection and ends its handshake.
fn established(admission: &Admission, address: &str) -> Permit {
    let mut permit = from(admission, address).expect("there is room");
    permit.established();
    permit
}

#[tokio::test(start_paused = true)]
async fn an_address_with_more_than_half_of_all_makes_room_for_others() {
    let admission = admission();
    let many: Vec<_> = (0..6).map(|_| established(&admission, "10.0.0.1")).collect();
    let few: Vec<_> = (0..2).map(|_| established(&admission, "10.0.0.2")).collect();
    assert!(from(&admission, "10.0.0.1").is_none(), "not for one of its own");
    let given_up = || (0..6).filter(|at| many[*at].gives_way.is_cancelled()).collect::<Vec<_>>();
    assert!(given_up().is_empty());
    let waiting = many[5].activity.held_up();
    tokio::time::advance(IDLE).await;
    many[3].activity.note(now());
    let newcomer = established(&admission, "10.0.0.3");
    assert_eq!(given_up(), [4], "the youngest over which nothing goes, and from which all was taken");
    drop(waiting);
    for permit in &many {
        permit.activity.note(now());
    }
    let pipe = admission.admit(None, "a pipe").expect("it has no address");
    assert_eq!(given_up(), [4, 5], "there is something on all of them");
    assert!(from(&admission, "10.0.0.2").is_none(), "it has no more than half of them any more");
    assert!(few.iter().all(|permit| !permit.gives_way.is_cancelled()));
    assert_eq!((admission.evicted(), admission.refused()), (2, 2));
    drop((many, few, newcomer, pipe));
    let counts = admission.0.counts();
    assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
}

/// The limit of connections is far away, but the process may have no descriptor for one more.
#[tokio::test(start_paused = true)]
async fn an_address_with_most_connections_makes_room_when_descriptors_run_out() {
    let admission = Admission::default();
    let few = established(&admission, "10.0.0.2");
    let mut many: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.1")).collect();
    assert!(!admission.make_room(), "something was just sent over each of them");
    tokio::time::advance(IDLE).await;
    many[2].activity.note(now());
    let given_up = |many: &[Permit]| many.iter().filter(|one| one.gives_way.is_cancelled()).count();
    assert!(admission.make_room() && many[1].gives_way.is_cancelled(), "it is the most recent idle one");
    assert!(admission.make_room(), "its descriptor will be free soon");
    assert_eq!((given_up(&many), admission.evicted()), (1, 1), "one is enough");
    drop(many.remove(1));
    assert!(admission.make_room() && many[0].gives_way.is_cancelled());
    drop(many.remove(0));
    assert!(!admission.make_room() && !few.gives_way.is_cancelled(), "no address has more than half");
    drop((few, many));
    let counts = admission.0.counts();
    assert_eq!((counts.connections, counts.giving_way, counts.addresses.len()), (0, 0, 0));
}

#[test]
fn it_makes_room_in_the_memory_for_connections_too_and_in_no_other() {
    let limits = AdmissionLimits::default();
    let memory = MemoryBudget::new(8 * CONNECTION);
    let admission = Admission::with_memory(limits, memory.clone());
    let mut many: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.1")).collect();
    let mut queues = memory.claim_shared();
    queues.force(5 * CONNECTION);
    assert!(from(&admission, "10.0.0.2").is_none(), "messages take what is left");
    assert_eq!(admission.evicted(), 0);
    queues.force(0);
    many.push(established(&admission, "10.0.0.1"));
    let _newcomer = established(&admission, "10.0.0.2");
    assert_eq!((admission.evicted(), many[3].gives_way.is_cancelled()), (1, true));
    assert!(from(&admission, "10.0.0.1").is_none());
    many.pop();
    assert_eq!(memory.used(), 4 * CONNECTION);

    // Another service with this memory budget refuses connections, too.
    let other = Admission::with_memory(limits, memory);
    assert!(from(&other, "10.0.0.1").is_none() && !many[2].gives_way.is_cancelled());
    let _newcomer = from(&other, "10.0.0.3").expect("there is room");
    assert!(many[2].gives_way.is_cancelled());
}

/// The places of connections that are ended are still being freed while new connections arrive, which is no
/// reason to refuse one of them.
#[test]
fn nobody_is_refused_because_others_come_and_go_at_the_same_moment() {
    let memory = MemoryBudget::new(2 * 64 * CONNECTION);
    let service = || Admission::with_memory(AdmissionLimits::default(), memory.clone());
    let services = [service(), service()];
    let (many, is_over) = (Mutex::new(Vec::<Permit>::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let next = from(&services[0], "10.0.0.1").map(|mut permit| {
                    permit.established();
                    permit
                });
                lock(&many).extend(next);
            }
        });
        let newcomers = [(&services[0], "10.0.0.2"), (&services[1], "10.0.0.3")].map(|(service, address)| {
            let many = &many;
            let come_and_go = move || {
                let newcomer = from(service, address);
                // The connections that were chosen to be ended are closed.
                lock(many).retain(|permit| !permit.gives_way.is_cancelled());
                newcomer.is_none()
            };
            scope.spawn(move || (0..20_000).filter(|_| come_and_go()).count())
        });
        let refused: Vec<_> = newcomers.into_iter().map(|newcomer| newcomer.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(refused, [0, 0]);
    });
}

#[test]
fn those_that_left_make_room_for_newcomers_in_the_order_in_which_they_left() {
    let admission = admission();
    let mut peers: Vec<_> = (0..8)
        .map(|number| {
            let mut permit = established(&admission, both(number));
            let end = CancellationToken::new();
            let place = permit.place(end.clone());
            (permit, place, end)
        })
        .collect();
    assert!(from(&admission, "10.0.0.2").is_none() && !admission.make_room(), "nobody has left");
    for number in [5, 2, 7] {
        Leaving(peers[number].1.clone()).left();
        Leaving(peers[number].1.clone()).left();
    }
    assert!(peers[5].1.left_for().is_some() && peers[6].1.left_for().is_none());
    drop(peers.remove(5));
    let newcomer = from(&admission, "10.0.0.2").expect("there is room now");
    assert!(peers.iter().all(|(_, place, end)| !place.is_given_away() && !end.is_cancelled()));
    let ended = |peers: &[(Permit, Arc<Place>, CancellationToken)]| -> Vec<usize> {
        (0..peers.len()).filter(|at| peers[*at].1.is_given_away() && peers[*at].2.is_cancelled()).collect()
    };
    let others = [(); 2].map(|()| from(&admission, "10.0.0.2").expect("somebody makes room"));
    assert_eq!(ended(&peers), [2, 6], "2 left before 7, which is the sixth now");
    assert!(from(&admission, "10.0.0.3").is_none(), "nobody else has left");
    drop((peers, newcomer, others));
    let counts = admission.0.counts();
    assert_eq!((counts.connections, counts.left.len()), (0, 0));
}

#[test]
fn a_network_of_ipv6_is_one_address_and_none_is_nobody() {
    let admission = admission();
    let _own: Vec<_> = (1..4).map(|host| from(&admission, &format!("fd00::{host}")).unwrap()).collect();
    assert!(from(&admission, "fd00::4").is_none());
    assert!(from(&admission, "fd00:0:0:1::4").is_some());
    assert!(admission.admit(None, "a pipe").is_some());
}

#[derive(Debug)]
struct Never;
impl Authenticator for Never {
    fn authenticate(&self, _: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        Box::pin(std::future::pending())
    }
}

/// Admits clients at one address, and recognizes one user.
#[derive(Debug)]
struct At(&'static str);
impl Authenticator for At {
    fn authenticate(&self, _: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        let admitted = from.is_some_and(|from| from.to_string() == self.0);
        Box::pin(std::future::ready(admitted.into()))
    }

    fn recognizes(&self, credentials: &Credentials) -> bool {
        matches!(credentials, Credentials::Password { user, .. } if user == "known")
    }
}

fn credentials(user: &'static str) -> Credentials {
    Credentials::Password { user: user.into(), password: Vec::new().into() }
}

#[tokio::test]
async fn credentials_of_one_address_are_judged_in_turn() {
    let admission = admission();
    let [first, second, other] =
        ["10.0.0.1", "10.0.0.1", "10.0.0.2"].map(|address| from(&admission, address).unwrap());
    let slow = first.in_turn(Some(Arc::new(Never))).unwrap();
    let mut slow = slow.authenticate(credentials("u"), None);
    assert!(futures::poll!(&mut slow).is_pending());
    let authenticator = second.in_turn(Some(Arc::new(At("10.0.0.1")))).unwrap();
    let mut waiting = authenticator.authenticate(credentials("u"), None);
    assert!(futures::poll!(&mut waiting).is_pending(), "it waits for the one before it");
    let known = authenticator.authenticate(credentials("known"), None).await;
    assert_eq!(known, Verdict::Admitted, "one that is recognized does not");
    let other = other.in_turn(Some(Arc::new(At("10.0.0.2")))).unwrap();
    assert_eq!(other.authenticate(credentials("u"), None).await, Verdict::Admitted);
    drop(slow);
    assert_eq!(waiting.await, Verdict::Admitted);
}

#[tokio::test]
async fn only_so_many_of_one_address_wait_to_be_judged() {
    let admission = admission();
    let permit = from(&admission, "10.0.0.1").unwrap();
    let authenticator = permit.in_turn(Some(Arc::new(Never))).unwrap();
    let mut waiting: Vec<_> =
        (0..=WAITING_PER_ADDRESS).map(|_| authenticator.authenticate(credentials("u"), None)).collect();
    for one in &mut waiting {
        assert!(futures::poll!(one).is_pending());
    }
    assert_eq!(authenticator.authenticate(credentials("u"), None).await, Verdict::Busy);
    waiting.pop();
    assert!(futures::poll!(&mut authenticator.authenticate(credentials("u"), None)).is_pending());
}
