//! Policies for subscribers that do not read fast enough.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::duration;
use crate::prefixes::PrefixTable;
use xmsg_zmq::HighWaterMark;

/// What happens to a message for a subscriber whose send queue is at its high-water mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The message is dropped for this subscriber, and counted.
    #[default]
    DropNewest,
    /// The oldest messages in the queue are dropped, and counted, to make room for the new one.
    DropOldest,
    /// The queue keeps only the newest message of each topic. The others are dropped, and counted. This
    /// starts at 1 MiB, or at the high-water mark if that is lower. If the high-water mark is reached
    /// nevertheless, the oldest messages are dropped.
    Conflate,
    /// The proxy stops reading from publishers of matching messages, and TCP back-pressure makes these
    /// publishers wait. No message is lost.
    Block {
        /// A subscriber that reads less than 64 KiB in this time while publishers wait for it is
        /// disconnected, as with [`Disconnect`](Self::Disconnect). With `None` it is never disconnected, and
        /// can make publishers wait for ever.
        longest: Option<Duration>,
    },
    /// The subscriber is disconnected. The messages in its queue count as undelivered.
    Disconnect,
}

impl Policy {
    /// The [`Block`](Self::Block) policy with the default time: a subscriber for which publishers wait is
    /// disconnected after 30 s.
    pub const BLOCK: Self = Self::Block { longest: Some(Duration::from_secs(30)) };

    /// All policies.
    pub const ALL: [Self; 5] =
        [Self::DropNewest, Self::DropOldest, Self::Conflate, Self::BLOCK, Self::Disconnect];

    /// Returns the name on the command line, without a time behind it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DropNewest => "drop-newest",
            Self::DropOldest => "drop-oldest",
            Self::Conflate => "conflate",
            Self::Block { .. } => "block",
            Self::Disconnect => "disconnect",
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    /// Parses a name, or `block:30s` with the longest wait (`ms`, `s`, `m`, `h` or `d`), or `block:forever`.
    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(longest) = name.strip_prefix("block:") {
            return Ok(Self::Block { longest: longest_wait(longest)? });
        }
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!(
                "unknown policy {name:?}: one of {names}, or block with the longest wait, such as block:30s"
            )
        })
    }
}

/// Parses the longest wait. `None` means for ever.
fn longest_wait(text: &str) -> Result<Option<Duration>, String> {
    if text == "forever" {
        return Ok(None);
    }
    // The time is displayed in whole milliseconds, and a displayed policy must be valid input.
    let longest = duration::parse(text).filter(|longest| longest.as_millis() > 0);
    let expected = || {
        format!(
            "invalid time {text:?} for block: give one from 1ms to 11 days, such as 500ms, 30s or 5m, or forever"
        )
    };
    longest.map(Some).ok_or_else(expected)
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Block { longest: None } => f.write_str(":forever"),
            Self::Block { longest: Some(longest) } if *self != Self::BLOCK => {
                match (longest.as_secs(), longest.subsec_millis()) {
                    (secs, 0) => write!(f, ":{secs}s"),
                    _ => write!(f, ":{}ms", longest.as_millis()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// The policy for messages whose topic starts with a prefix. The longest prefix decides, and among equal
/// prefixes the last one.
///
/// ```
/// use xmsg_proxy::{Policy, TopicPolicy};
/// let levels: TopicPolicy = "level:=conflate".parse()?;
/// assert_eq!(levels, TopicPolicy::new("level:", Policy::Conflate));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPolicy {
    /// The prefix of the topics.
    pub prefix: Vec<u8>,
    /// What happens at the high-water mark.
    pub policy: Policy,
    /// The high-water mark for messages with these topics. It is compared with everything in the subscriber's
    /// queue, whatever its topic. Default: the high-water mark of all topics.
    pub high_water_mark: Option<HighWaterMark>,
}

impl TopicPolicy {
    /// Creates a policy at the high-water mark of all topics.
    #[must_use]
    pub fn new(prefix: impl Into<Vec<u8>>, policy: Policy) -> Self {
        Self { prefix: prefix.into(), policy, high_water_mark: None }
    }
}

impl FromStr for TopicPolicy {
    type Err = String;

    /// Parses `PREFIX=POLICY`. The prefix itself may contain `=`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (prefix, policy) = text.rsplit_once('=').ok_or("PREFIX=POLICY is expected")?;
        Ok(Self::new(prefix, policy.parse()?))
    }
}

impl fmt::Display for TopicPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix.escape_ascii(), self.policy)
    }
}

/// A policy and the high-water mark at which it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) policy: Policy,
    pub(crate) mark: HighWaterMark,
}

/// The place of a rule among the [`Policies`]. The default is that of the rule for all topics without one of
/// their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RuleId(u32);

impl RuleId {
    /// Returns the place as a number.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// The rules, and which of them applies to a topic.
#[derive(Debug)]
pub(crate) struct Policies {
    /// The rules. The first one applies to all topics without one of their own.
    rules: Vec<Rule>,
    prefixes: PrefixTable<RuleId>,
}

impl Policies {
    pub(crate) fn new(default: Rule, policies: &[TopicPolicy]) -> Self {
        let mut all = Self { rules: vec![default], prefixes: PrefixTable::new() };
        for own in policies {
            all.prefixes.insert(&own.prefix, RuleId(all.rules.len() as u32));
            all.rules.push(Rule { policy: own.policy, mark: own.high_water_mark.unwrap_or(default.mark) });
        }
        all
    }

    /// Returns the rule for this topic.
    pub(crate) fn of(&self, topic: &[u8]) -> RuleId {
        let mut rule = RuleId::default();
        // The longest prefix comes last, and so does the last rule for it.
        self.prefixes.find(topic, |rules| rule = rules.last().copied().unwrap_or(rule));
        rule
    }

    /// Returns this rule, whose place [`of`](Self::of) returned.
    pub(crate) fn rule(&self, id: RuleId) -> Rule {
        self.rules.get(id.0 as usize).copied().unwrap_or(self.rules[0])
    }

    pub(crate) fn default_rule(&self) -> Rule {
        self.rules[0]
    }

    /// Returns how many bytes of a topic matter at most.
    pub(crate) fn longest_prefix(&self) -> usize {
        self.prefixes.longest_prefix()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for policy in Policy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let unknown = "drop".parse::<Policy>().unwrap_err();
        assert!(unknown.contains("drop-newest, drop-oldest, conflate, block, disconnect"), "{unknown}");
    }

    #[test]
    fn the_longest_wait_is_read_and_shown() {
        let block = |longest| Policy::Block { longest };
        for (text, longest, shown) in [
            ("block", Some(Duration::from_secs(30)), "block"),
            ("block:30s", Some(Duration::from_secs(30)), "block"),
            ("block:250ms", Some(Duration::from_millis(250)), "block:250ms"),
            ("block:5m", Some(Duration::from_secs(300)), "block:300s"),
            ("block:1h", Some(Duration::from_secs(3600)), "block:3600s"),
            ("block:30", Some(Duration::from_secs(30)), "block"),
            ("block:forever", None, "block:forever"),
        ] {
            let policy: Policy = text.parse().unwrap();
            assert_eq!((policy, policy.to_string()), (block(longest), shown.to_owned()));
            assert_eq!(shown.parse(), Ok(policy));
        }
        for text in
            ["block:", "block:0s", "block:0.1ms", "block:s", "block:-1s", "block:99999999999999999999h"]
        {
            let error = text.parse::<Policy>().unwrap_err();
            assert!(error.contains("30s"), "{error}");
        }
    }

    #[test]
    fn a_prefix_may_contain_what_separates_it() {
        assert_eq!("a=b=block".parse(), Ok(TopicPolicy::new("a=b", Policy::BLOCK)));
        assert_eq!("=block".parse(), Ok(TopicPolicy::new("", Policy::BLOCK)));
        assert!("block".parse::<TopicPolicy>().is_err());
        assert!("a=".parse::<TopicPolicy>().is_err());
    }

    #[test]
    fn the_longest_prefix_counts_and_of_equal_ones_the_later() {
        let mark = HighWaterMark::bytes(1);
        let own = HighWaterMark::bytes(2);
        let policies = Policies::new(
            Rule { policy: Policy::DropNewest, mark },
            &[
                TopicPolicy::new("data:raw", Policy::BLOCK),
                TopicPolicy { high_water_mark: Some(own), ..TopicPolicy::new("data:", Policy::Conflate) },
                TopicPolicy::new("data:raw", Policy::Disconnect),
            ],
        );
        let rule = |topic: &str| policies.rule(policies.of(topic.as_bytes()));
        assert_eq!(rule("dat"), Rule { policy: Policy::DropNewest, mark });
        assert_eq!(rule("data:"), Rule { policy: Policy::Conflate, mark: own });
        assert_eq!(rule("data:ra"), Rule { policy: Policy::Conflate, mark: own });
        assert_eq!(rule("data:raw:1"), Rule { policy: Policy::Disconnect, mark });
    }
}
