//! Detects whether the host at the other end of a TCP connection still answers while data is on its way to
//! it.
//!
//! A peer that pauses reads nothing, and so answers no heartbeat. But its kernel goes on acknowledging what
//! it receives, if only to say that the receive window is full. A host that is gone acknowledges nothing. TCP
//! knows the difference, and gives up after about fifteen minutes. Keepalive does not help, because it is for
//! idle connections. `TCP_USER_TIMEOUT` would also end connections to paused peers. So we ask the kernel
//! (`sock_diag`, which `ss -i` uses). It says how often it retransmitted the same data or sent window probes
//! in vain, and when it last received an acknowledgement.
//!
//! This works on Linux only. Elsewhere, and where the system does not answer, nothing is ever detected, and
//! TCP's own time limit applies.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::deadline::Deadline;

/// The minimum number of unanswered probes or retransmissions, to rule out an accident. If 1 packet in 20 is
/// lost at random, it is rare that three in a row, or all the answers to them, are lost.
const UNANSWERED_MIN: u8 = 3;
/// How soon a connection is checked again if its time is up but fewer probes than that were sent.
const RECHECK: Duration = Duration::from_secs(1);
/// The kernel counts in ticks of up to 10 ms, and we look a little later than it does.
const GRANULARITY: Duration = Duration::from_millis(50);

/// The addresses of both ends of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
}

/// What the kernel sends again and again until it gets an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// It retransmits the same data. Its count goes on while the other side answers that it has no room for
    /// the data.
    Data,
    /// It probes a receive window of zero. Its count starts anew with each answer, whatever the answer says.
    Room,
}

/// What the kernel reports about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    question: Question,
    /// How often in a row the kernel asked. It is 0 when nothing is on its way.
    asked: u8,
    /// How long ago the last acknowledgement arrived.
    last_ack: Duration,
    /// The number of bytes that arrived and that we have not read.
    unread: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The connection is to be checked again after this time.
    Wait(Duration),
    Gone,
}

#[derive(Debug)]
struct Watch {
    interval: Duration,
    timeout: Duration,
    /// Since when nothing was acknowledged, as far as we saw, and how often the kernel had asked until then.
    silence: Option<Silence>,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    asked_before: u8,
}

impl Watch {
    fn observe(&mut self, now: Instant, sample: Option<Sample>) -> Verdict {
        let Some(sample) = sample.filter(|sample| sample.asked > 0) else {
            self.silence = None;
            return Verdict::Wait(self.interval);
        };
        // If the peer has acknowledged something since, what is unanswered now is something else.
        let going_on = self.silence.filter(|silence| sample.last_ack + GRANULARITY >= now - silence.since);
        let silence = going_on.unwrap_or(Silence {
            since: now,
            asked_before: match sample.question {
                // Some of these retransmissions may have been answered, so none of them counts.
                Question::Data => sample.asked,
                Question::Room => 0,
            },
        });
        self.silence = Some(silence);
        let left = Deadline::since(silence.since, self.timeout).instant().saturating_duration_since(now);
        let unanswered = sample.asked.saturating_sub(silence.asked_before);
        match (left.is_zero(), unanswered >= UNANSWERED_MIN) {
            (true, true) => Verdict::Gone,
            (true, false) => Verdict::Wait(RECHECK.min(self.interval)),
            (false, _) => Verdict::Wait(left),
        }
    }
}

/// Returns when the host at the other end has not answered for `timeout` although it was asked, at most
/// `interval` later. Nothing is asked on an idle connection; keepalive is for that. Without a route it never
/// returns.
pub async fn vanished(route: Option<Route>, interval: Duration, timeout: Duration) {
    let (Some(route), true) = (route, cfg!(target_os = "linux")) else { return std::future::pending().await };
    asking(|| kernel::sample(route), interval, timeout).await;
}

/// Does what [`vanished`] does, with samples from `sample`.
async fn asking(
    mut sample: impl FnMut() -> io::Result<Option<Sample>>,
    interval: Duration,
    timeout: Duration,
) {
    // The other half is for the time until the kernel has asked again at all.
    let mut watch = Watch { interval: interval / 2, timeout, silence: None };
    let mut pause = watch.interval;
    loop {
        tokio::time::sleep(pause).await;
        let sample = match sample() {
            Ok(sample) => sample,
            Err(error) if is_refused(&error) => {
                tracing::debug!(%error, "the system does not say whether peers are still there: TCP decides alone");
                return std::future::pending().await;
            }
            // The system has no descriptor, memory or time at the moment. That says nothing about the peer,
            // nor about the next time.
            Err(error) => {
                tracing::debug!(%error, "the system did not say whether a peer is still there: it is asked again");
                pause = watch.interval;
                continue;
            }
        };
        match watch.observe(Instant::now(), sample) {
            Verdict::Wait(time) => pause = time,
            Verdict::Gone => return,
        }
    }
}

/// Whether the system will not answer the next time either.
fn is_refused(error: &io::Error) -> bool {
    /// The error numbers `EPROTONOSUPPORT` and `EAFNOSUPPORT`.
    const UNKNOWN: [i32; 2] = [93, 97];
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
        || error.raw_os_error().is_some_and(|number| UNKNOWN.contains(&number))
}

/// Returns how many bytes the peer has sent that we have not read, if the system says so.
#[must_use]
pub fn unread(route: Route) -> Option<u64> {
    kernel::sample(route).ok().flatten().map(|sample| sample.unread.into())
}

#[cfg(not(target_os = "linux"))]
mod kernel {
    pub(crate) fn sample(_: super::Route) -> std::io::Result<Option<super::Sample>> {
        Ok(None)
    }
}

/// Netlink, as defined by the kernel's `inet_diag.h` and `tcp.h`. Numbers are in native byte order; addresses
/// and ports are in network byte order.
#[cfg(target_os = "linux")]
mod kernel {
    use std::io::{self, Read, Write};
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use socket2::{Domain, Protocol, Socket, Type};

    use super::{Question, Route, Sample};

    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const AF_NETLINK: i32 = 16;
    const NETLINK_SOCK_DIAG: i32 = 4;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLMSG_ERROR: u16 = 2;
    const NLM_F_REQUEST: u16 = 1;
    const IPPROTO_TCP: u8 = 6;
    /// The attribute with `struct tcp_info`.
    const INET_DIAG_INFO: u16 = 2;
    /// The length of `struct nlmsghdr`.
    const HEADER: usize = 16;
    /// The length of `struct inet_diag_req_v2`.
    const REQUEST: usize = 56;
    /// The length of `struct inet_diag_msg`.
    const MESSAGE: usize = 72;
    /// The timer that runs while the acknowledgement of sent data is missing.
    const TIMER_DATA: u8 = 1;
    /// The timer that runs while the receive window of the other side is full.
    const TIMER_ROOM: u8 = 4;
    /// The offset of `idiag_rqueue` in `struct inet_diag_msg`.
    const UNREAD: usize = 56;
    /// The offset of `tcpi_last_ack_recv`, in milliseconds, in `struct tcp_info`.
    const LAST_ACK: usize = 56;
    const ENOENT: i32 = 2;

    /// Returns `None` when the kernel does not know such a connection, or does not know it any more. The
    /// kernel answers within the call that sends the request.
    pub(crate) fn sample(route: Route) -> io::Result<Option<Sample>> {
        let mut socket =
            Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
        socket.set_nonblocking(true)?;
        socket.write_all(&request(route))?;
        let mut reply = [0; 4096];
        let len = socket.read(&mut reply)?;
        read(&reply[..len])
    }

    pub(crate) fn request(route: Route) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + REQUEST);
        bytes.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
        bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        // Sequence number and sender stay 0: there is one request and one answer.
        bytes.extend_from_slice(&[0; 8]);
        let family = if route.local.is_ipv4() { AF_INET } else { AF_INET6 };
        bytes.extend_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
        // The connection may be in any state.
        bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
        bytes.extend_from_slice(&route.local.port().to_be_bytes());
        bytes.extend_from_slice(&route.peer.port().to_be_bytes());
        for end in [route.local, route.peer] {
            let mut address = [0; 16];
            match end.ip() {
                IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => address.copy_from_slice(&ip.octets()),
            }
            bytes.extend_from_slice(&address);
        }
        let interface = match route.local {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(local) => local.scope_id(),
        };
        bytes.extend_from_slice(&interface.to_ne_bytes());
        // This means "no cookie".
        bytes.extend_from_slice(&[0xff; 8]);
        bytes
    }

    pub(crate) fn read(reply: &[u8]) -> io::Result<Option<Sample>> {
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "an answer of sock_diag was not understood");
        let bytes = |at: usize, len: usize| reply.get(at..at + len).ok_or_else(malformed);
        let u16_at = |at| bytes(at, 2).map(|two| u16::from_ne_bytes([two[0], two[1]]));
        let u32_at = |at| bytes(at, 4).map(|four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]));
        match u16_at(4)? {
            SOCK_DIAG_BY_FAMILY => {}
            NLMSG_ERROR => {
                let code = u32_at(HEADER)?.cast_signed().wrapping_neg();
                return if code == ENOENT { Ok(None) } else { Err(io::Error::from_raw_os_error(code)) };
            }
            _ => return Err(malformed()),
        }
        let [_, _, timer, retrans] = bytes(HEADER, 4)? else { return Err(malformed()) };
        let end = (u32_at(0)? as usize).min(reply.len());
        let mut at = HEADER + MESSAGE;
        while at < end {
            let (len, kind) = (usize::from(u16_at(at)?), u16_at(at + 2)?);
            if kind == INET_DIAG_INFO && len >= 4 + LAST_ACK + 4 {
                let last_ack = Duration::from_millis(u32_at(at + 4 + LAST_ACK)?.into());
                let (question, asked) = match *timer {
                    TIMER_DATA => (Question::Data, *retrans),
                    TIMER_ROOM => (Question::Room, *retrans),
                    _ => (Question::Data, 0),
                };
                return Ok(Some(Sample { question, asked, last_ack, unread: u32_at(HEADER + UNREAD)? }));
            }
            // Attributes are aligned to four bytes, and none is shorter than its header.
            at += len.max(4).next_multiple_of(4);
        }
        Err(malformed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(20);

    fn watch() -> Watch {
        Watch { interval: INTERVAL, timeout: TIMEOUT, silence: None }
    }

    fn sample(asked: u8, last_ack_ms: u64) -> Sample {
        Sample { question: Question::Data, asked, last_ack: Duration::from_millis(last_ack_ms), unread: 0 }
    }

    fn without_room(asked: u8, last_ack_ms: u64) -> Sample {
        Sample { question: Question::Room, ..sample(asked, last_ack_ms) }
    }

    #[test]
    fn who_answers_nothing_for_the_time_limit_is_gone() {
        let (start, mut watch) = (Instant::now(), watch());
        // The connection was idle for an hour; then data was sent and retransmitted.
        assert_eq!(watch.observe(start, Some(sample(0, 3_600_000))), Verdict::Wait(INTERVAL));
        assert_eq!(watch.observe(start + INTERVAL, Some(sample(1, 3_610_000))), Verdict::Wait(TIMEOUT));
        let later = start + INTERVAL + TIMEOUT / 2;
        assert_eq!(watch.observe(later, Some(sample(4, 3_620_000))), Verdict::Wait(TIMEOUT / 2));
        assert_eq!(watch.observe(start + INTERVAL + TIMEOUT, Some(sample(6, 3_630_000))), Verdict::Gone);
    }

    #[test]
    fn an_answer_starts_the_time_anew() {
        let (start, mut watch) = (Instant::now(), watch());
        watch.observe(start, Some(sample(1, 300)));
        // The peer answered five seconds ago.
        assert_eq!(watch.observe(start + TIMEOUT, Some(sample(3, 5_000))), Verdict::Wait(TIMEOUT));
        assert_eq!(watch.observe(start + TIMEOUT * 2, Some(sample(6, 25_000))), Verdict::Gone);
        // If nothing is on its way any more, no answer is missing.
        assert_eq!(watch.observe(start + TIMEOUT * 2, Some(sample(0, 90_000))), Verdict::Wait(INTERVAL));
        assert_eq!(watch.observe(start + TIMEOUT * 3, Some(sample(9, 90_000))), Verdict::Wait(TIMEOUT));
        assert_eq!(watch.observe(start + TIMEOUT * 4, None), Verdict::Wait(INTERVAL), "it was closed");
    }

    #[test]
    fn a_paused_peer_is_asked_ever_more_rarely_and_one_question_in_vain_proves_nothing() {
        let (start, mut watch) = (Instant::now(), watch());
        watch.observe(start, Some(without_room(1, 60_000)));
        assert_eq!(watch.observe(start + TIMEOUT, Some(without_room(1, 80_000))), Verdict::Wait(RECHECK));
        assert_eq!(
            watch.observe(start + TIMEOUT * 2, Some(without_room(2, 100_000))),
            Verdict::Wait(RECHECK)
        );
        assert_eq!(watch.observe(start + TIMEOUT * 3, Some(without_room(3, 120_000))), Verdict::Gone);
    }

    #[tokio::test(start_paused = true)]
    async fn a_system_that_cannot_answer_once_is_asked_again() {
        let start = Instant::now();
        // At first no descriptor is free; after that, nothing is acknowledged any more.
        let mut asked = 0_u8;
        let found = asking(
            || {
                asked += 1;
                match asked {
                    1 | 3 => Err(io::Error::from_raw_os_error(24)),
                    _ => Ok(Some(sample(asked, (Instant::now() - start).as_millis() as u64))),
                }
            },
            INTERVAL,
            TIMEOUT,
        );
        tokio::time::timeout(Duration::from_secs(600), found).await.expect("it is found out");
        assert!(asked > 3);
        // A system that refuses is not asked again.
        let mut asked = 0;
        let refusing = || {
            asked += 1;
            Err(io::Error::from(io::ErrorKind::PermissionDenied))
        };
        let refused = asking(refusing, INTERVAL, TIMEOUT);
        tokio::time::timeout(Duration::from_secs(600), refused).await.unwrap_err();
        assert_eq!(asked, 1);
    }

    /// The receive window of a paused peer shrank while data was on its way. The peer answers each
    /// retransmission, but the kernel counts them nevertheless.
    #[test]
    fn copies_that_were_answered_do_not_count() {
        let (start, mut watch) = (Instant::now(), watch());
        watch.observe(start, Some(sample(4, 100)));
        assert_eq!(watch.observe(start + TIMEOUT, Some(sample(5, 8_000))), Verdict::Wait(TIMEOUT));
        // One retransmission was lost.
        assert_eq!(watch.observe(start + TIMEOUT * 2, Some(sample(6, 28_000))), Verdict::Wait(RECHECK));
        assert_eq!(watch.observe(start + TIMEOUT * 3, Some(sample(7, 5_000))), Verdict::Wait(TIMEOUT));
        assert_eq!(watch.observe(start + TIMEOUT * 4, Some(sample(9, 25_000))), Verdict::Wait(RECHECK));
        assert_eq!(watch.observe(start + TIMEOUT * 5, Some(sample(10, 45_000))), Verdict::Gone);
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};

        use super::*;

        fn pair(address: &str) -> (TcpStream, TcpStream) {
            let listener = TcpListener::bind(address).unwrap();
            let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0, theirs)
        }

        fn route(stream: &TcpStream) -> Route {
            Route { local: stream.local_addr().unwrap(), peer: stream.peer_addr().unwrap() }
        }

        #[test]
        fn the_kernel_knows_a_connection_that_is_there_and_no_other() {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let Ok(_) = TcpListener::bind(address) else {
                    assert!(address.starts_with('['), "there is no IPv4");
                    continue;
                };
                let (mut ours, mut theirs) = pair(address);
                ours.write_all(b"hello").unwrap();
                theirs.read_exact(&mut [0; 5]).unwrap();
                theirs.write_all(b"abc").unwrap();
                ours.peek(&mut [0; 3]).unwrap();
                assert_eq!(unread(route(&ours)), Some(3));
                let found = kernel::sample(route(&ours)).unwrap().expect("it is there");
                assert_eq!(found.asked, 0, "the loopback answers");
                assert!(found.last_ack < Duration::from_secs(60), "{found:?}");
                let Route { local, mut peer } = route(&ours);
                peer.set_port(1);
                assert_eq!(kernel::sample(Route { local, peer }).unwrap(), None);
            }
        }

        #[tokio::test]
        async fn a_peer_that_does_not_read_is_not_gone() {
            let (mut ours, theirs) = pair("127.0.0.1:0");
            ours.set_nonblocking(true).unwrap();
            while ours.write(&[0; 1 << 14]).is_ok() {}
            let time = Duration::from_millis(300);
            let gone = vanished(Some(route(&ours)), time, time);
            // The test checks that nothing happens in this time.
            assert!(tokio::time::timeout(time * 10, gone).await.is_err());
            drop(theirs);
        }

        #[test]
        fn what_is_no_answer_is_told() {
            let answer = |kind: u16, body: &[u8]| {
                let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
                bytes.extend_from_slice(&kind.to_ne_bytes());
                bytes.extend_from_slice(&[0; 10]);
                bytes.extend_from_slice(body);
                bytes
            };
            // An `inet_diag_msg` (established, timer 1, five times), an attribute of two bytes, and
            // `tcp_info`.
            let mut body = vec![2, 1, 1, 5];
            body.resize(72, 0);
            body.extend_from_slice(&[6_u16.to_ne_bytes(), 8_u16.to_ne_bytes()].concat());
            body.extend_from_slice(&[1, 2, 0, 0]);
            body.extend_from_slice(&[(4 + 60_u16).to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
            body.resize(72 + 8 + 4 + 56, 0);
            body.extend_from_slice(&1234_u32.to_ne_bytes());
            let whole = answer(20, &body);
            assert_eq!(kernel::read(&whole).unwrap(), Some(sample(5, 1234)));
            for len in 0..whole.len() {
                kernel::read(&whole[..len]).unwrap_err();
            }
            body[2] = 4;
            assert_eq!(kernel::read(&answer(20, &body)).unwrap(), Some(without_room(5, 1234)));
            // The keepalive timer detects a dead peer by itself.
            body[2] = 2;
            assert_eq!(kernel::read(&answer(20, &body)).unwrap(), Some(sample(0, 1234)));
            let error = |code: i32| kernel::read(&answer(2, &code.to_ne_bytes()));
            assert_eq!(error(-2).unwrap(), None);
            assert_eq!(error(-1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            kernel::read(&answer(3, &[])).unwrap_err();
            assert_eq!(
                kernel::request(Route {
                    local: "127.0.0.1:1".parse().unwrap(),
                    peer: "127.0.0.1:2".parse().unwrap()
                })
                .len(),
                72
            );
        }
    }
}
