//! Questions of the operator of the registrar: some of the registrations, page by page. They are searched in
//! slices, so that clients of the registrar do not wait for them.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use xmsg_core::registration::{OwnerType, Registration};

use super::Service;
use crate::registrar::store::Search;

/// Registrations that one question looks at. A longer search would take seconds, and nobody waits for it.
const LOOKED_MAX: usize = 200_000;
/// Registrations that are looked at in one slice. A filter has to decode each of them, so that there are
/// fewer than in a slice of a query.
const SLICE: usize = 128;

/// The registrations that are wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Publishers or subscribers, or `None` for both.
    pub owner: Option<OwnerType>,
    /// The prefix of the topic.
    pub topic: String,
    /// A part of the name, of the host with its port, or of the description, in any case.
    pub filter: String,
    /// The number of matching registrations that are passed over.
    pub offset: usize,
    /// The largest number of registrations in the answer.
    pub limit: usize,
}

/// A registration in an answer.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Whether it is that of a publisher or of a subscriber.
    pub owner: OwnerType,
    /// The registration.
    pub registration: Registration,
    /// The time since it was registered or renewed. It is known if registrations expire.
    pub renewed_for: Option<Duration>,
}

/// A page of registrations.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The registrations that match, in the order of their topics, publishers first.
    pub listed: Vec<Listed>,
    /// Whether more of them match.
    pub has_more: bool,
    /// Whether the search was given up because there are too many registrations to look at: further ones may
    /// match.
    pub is_cut: bool,
}

/// A question, and the sender of its answer.
#[derive(Debug)]
pub(in crate::registrar) struct Question {
    pub(in crate::registrar) query: Query,
    pub(in crate::registrar) answer: oneshot::Sender<Page>,
}

/// A question that is being answered.
#[derive(Debug)]
pub(super) struct Browsing {
    question: Question,
    /// The search in progress, or `None` before it begins.
    search: Option<(OwnerType, Search)>,
    /// The kinds that are to be searched after that.
    left: Vec<OwnerType>,
    /// The number of matching registrations that are still to be skipped.
    pass: usize,
    looked: usize,
    page: Page,
}

impl From<Question> for Browsing {
    fn from(mut question: Question) -> Self {
        question.query.filter = question.query.filter.to_lowercase();
        let left = match question.query.owner {
            Some(owner) => vec![owner],
            None => OwnerType::ALL.into_iter().rev().collect(),
        };
        let pass = question.query.offset;
        Self { question, search: None, left, pass, looked: 0, page: Page::default() }
    }
}

impl Browsing {
    fn take(&mut self, owner: OwnerType, frame: &Bytes, renewed_for: Option<Duration>) {
        self.looked += 1;
        if self.page.has_more {
            return;
        }
        let query = &self.question.query;
        let is_wanted = self.pass == 0 && self.page.listed.len() < query.limit;
        // A registration that is skipped, or only counted, need not be decoded.
        if query.filter.is_empty() && !is_wanted {
            return self.pass_over();
        }
        let Ok(registration) = Registration::decode(frame) else { return };
        if !fits(&registration, &query.filter) {
            return;
        }
        if is_wanted {
            self.page.listed.push(Listed { owner, registration, renewed_for });
        } else {
            self.pass_over();
        }
    }

    /// Counts a registration that matches and is not in the answer.
    fn pass_over(&mut self) {
        match self.pass.checked_sub(1) {
            Some(pass) => self.pass = pass,
            None => self.page.has_more = true,
        }
    }
}

fn fits(registration: &Registration, filter: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(filter);
    filter.is_empty()
        || has(&registration.name)
        || has(&format!("{}:{}", registration.host, registration.port))
        || has(registration.description())
}

impl Service {
    /// Continues one of the questions by one slice.
    pub(super) fn browse_slice(&mut self) {
        while let Ok(question) = self.questions.try_recv() {
            self.browsing.push_back(question.into());
        }
        let Some(mut one) = self.browsing.pop_front() else { return };
        // Nobody waits for the answer any more.
        if one.question.answer.is_closed() {
            return;
        }
        let next = one.search.take().or_else(|| {
            let owner = one.left.pop()?;
            Some((owner, self.store.search_starting_with(owner, &one.question.query.topic)))
        });
        if let Some((owner, mut search)) = next {
            let take = |frame: &Bytes, renewed_for| one.take(owner, frame, renewed_for);
            let is_whole = self.store.advance_dated(&mut search, SLICE, self.started.elapsed(), take);
            one.page.is_cut = one.looked >= LOOKED_MAX && !(is_whole && one.left.is_empty());
            if !one.page.has_more && !one.page.is_cut {
                one.search = (!is_whole).then_some((owner, search));
                if one.search.is_some() || !one.left.is_empty() {
                    return self.browsing.push_back(one);
                }
            }
        }
        // The receiver may have gone meanwhile.
        let _ = one.question.answer.send(one.page);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;
    use xmsg_core::{ProxyAddress, Topic};
    use xmsg_zmq::{Replier, SocketOptions};

    use super::*;
    use crate::registrar::store::Store;

    const NOW: Duration = Duration::from_secs(5);

    fn service(ttl: Option<Duration>) -> Service {
        let replier = Replier::new(SocketOptions::default());
        let store = Store::new(10_000, ttl);
        let stop = CancellationToken::new();
        let mut service =
            Service::new(Bytes::from_static(b"test"), replier, store, None, std::sync::Arc::default(), stop);
        for number in 0..1000 {
            let owner = OwnerType::ALL[number % 2];
            let topic = Topic::new("level", format!("tank{number:04}")).unwrap();
            let name = format!("Actor{number}");
            let one = Registration::new(owner, name, &topic, &ProxyAddress::default());
            assert!(service.store.register(owner, &one, NOW).unwrap());
        }
        service
    }

    /// Returns the answer, and the number of slices that it took.
    fn ask(service: &mut Service, query: Query) -> (Page, usize) {
        let (answer, mut answered) = oneshot::channel();
        service.browsing.push_back(Question { query, answer }.into());
        for slices in 1.. {
            service.browse_slice();
            if let Ok(page) = answered.try_recv() {
                return (page, slices);
            }
        }
        unreachable!("a search ends")
    }

    fn names(page: &Page) -> Vec<&str> {
        page.listed.iter().map(|one| one.registration.name.as_str()).collect()
    }

    #[test]
    fn pages_have_every_registration_once_publishers_first() {
        let mut service = service(None);
        let mut all = Vec::new();
        loop {
            let query = Query { offset: all.len(), limit: 300, ..Query::default() };
            let (page, slices) = ask(&mut service, query);
            assert!(slices > 1, "a slice is short");
            assert!(page.listed.iter().all(|one| one.renewed_for.is_none()));
            all.extend(page.listed.iter().map(|one| one.registration.name.clone()));
            assert!(!page.is_cut);
            if !page.has_more {
                break;
            }
        }
        assert_eq!(all.len(), 1000);
        assert_eq!((&*all[0], &*all[499], &*all[500]), ("Actor0", "Actor998", "Actor1"));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn a_filter_finds_names_hosts_and_starts_of_topics() {
        let mut service = service(Some(Duration::from_secs(60)));
        let find = |service: &mut Service, owner, topic: &str, filter: &str| {
            let (topic, filter) = (topic.to_owned(), filter.to_owned());
            ask(service, Query { owner, topic, filter, offset: 0, limit: 2 }).0
        };
        let page = find(&mut service, None, "", "actor99");
        assert_eq!(names(&page), ["Actor990", "Actor992"]);
        assert!(page.has_more);
        assert!(page.listed[0].renewed_for.is_some());
        let page = find(&mut service, Some(OwnerType::Subscriber), "level:tank09", "ACTOR99");
        assert_eq!(names(&page), ["Actor991", "Actor993"]);
        let page = find(&mut service, None, "level:tank0017", "7771");
        assert_eq!((names(&page), page.has_more), (vec!["Actor17"], false));
        assert!(find(&mut service, None, "none", "").listed.is_empty());
    }

    #[test]
    fn who_has_left_costs_no_search() {
        let mut service = service(None);
        let (answer, answered) = oneshot::channel();
        service.browsing.push_back(Question { query: Query::default(), answer }.into());
        drop(answered);
        service.browse_slice();
        assert!(service.browsing.is_empty());
    }
}
