//! Tests from the test suites of the other implementations about topics: Java `xMsgTopicTest`, C++
//! `topic_test`, Python `test_xMsgTopic`.

use xmsg_core::topic::ANY;
use xmsg_core::{ErrorKind, Topic};
use xmsg_tests::topic;

fn build(domain: &str, subject: &str, types: &str) -> Topic {
    Topic::with_types(domain, subject, types).unwrap()
}

/// Returns the same topic, once wrapped and once parsed.
fn both_ways(text: &str) -> [Topic; 2] {
    [topic(text), text.parse().unwrap()]
}

/// Corresponds to Java `buildWithDomainOnly`, C++ `BuildWithValidValues`.
#[test]
fn a_domain_alone_is_a_topic() {
    assert_eq!(Topic::of_domain("sea").unwrap(), "sea");
    assert_eq!(build("sea", "*", "*"), "sea");
}

/// Corresponds to Java `buildWithSubject`, `buildWithTopic`; C++ `BuildWithValidValues`; Python
/// `test_build_topic`.
#[test]
fn parts_are_joined_by_colons() {
    assert_eq!(Topic::new("sea", "fish").unwrap(), "sea:fish");
    assert_eq!(build("sea", "fish", "cod"), "sea:fish:cod");
    assert_eq!(build("_sea", "fi_sh", "c_od"), "_sea:fi_sh:c_od");
}

/// Corresponds to Java `buildWithExtendedTopic`, C++ `BuildWithExtendedTopic`.
#[test]
fn types_may_have_several_parts_and_end_at_any() {
    assert_eq!(build("sea", "fish", "cod:north:young"), "sea:fish:cod:north:young");
    assert_eq!(build("sea", "fish", "cod:north:*"), "sea:fish:cod:north");
    assert_eq!(build("sea", "fish", "cod:*:young"), "sea:fish:cod");
}

/// Corresponds to Java `buildWithUndefinedSubject`, `buildWithUndefinedType`; C++
/// `BuildWithValidUndefinedValues`.
#[test]
fn any_as_subject_or_type_ends_the_topic() {
    assert_eq!(Topic::new("sea", "*").unwrap(), "sea");
    assert_eq!(build("sea", "*", "*"), "sea");
    assert_eq!(build("sea", "fish", "*"), "sea:fish");
}

/// C++ `BuildWithInvalidUndefinedValues` refuses a type below any subject. Java ends the topic at the
/// subject, and so does this project.
#[test]
fn a_type_below_any_subject_is_left_out() {
    assert_eq!(build("sea", "*", "cod"), "sea");
}

/// Corresponds to Java `buildWithUndefinedDomainFails`, `buildWithUndefinedDomainAndValidSubjectFails`,
/// `buildWithNullDomainAndValidTypeFails`; C++ `BuildWithInvalidUndefinedValues`; Python
/// `test_build_topic_raises_exception`.
#[test]
fn a_domain_has_to_be_named() {
    for domain in ["*", ""] {
        let refused = [
            Topic::of_domain(domain),
            Topic::new(domain, "fish"),
            Topic::with_types(domain, "fish", "cod"),
            Topic::with_types(domain, "*", "*"),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidTopic);
        }
    }
}

/// Corresponds to Java `wrapWithDomainOnly`, `wrapWithSubject`, `wrapWithTopic`, `wrapWithExtendedTopic`; C++
/// `WrapRawTopic`; Python `test_wrap_builder`.
#[test]
fn a_wrapped_topic_is_the_text_as_it_was() {
    for text in ["sea", "sea:fish", "sea:fish:cod", "sea:fish:cod:north:young", "_sea:_fish:_cod", "*:fish"] {
        assert_eq!(topic(text).to_string(), text);
        assert_eq!(topic(text).as_bytes(), text.as_bytes());
    }
}

/// Corresponds to Java `getDomain`, C++ `GetDomain`, Python `test_get_domain`.
#[test]
fn the_domain_reads_back() {
    for text in ["sea", "sea:fish", "sea:fish:cod", "sea:fish:cod:north"] {
        for topic in both_ways(text) {
            assert_eq!(topic.domain(), "sea", "{text}");
        }
    }
}

/// Corresponds to Java `getSubject`, C++ `GetSubject`, Python `test_get_subject`.
#[test]
fn the_subject_reads_back_and_is_any_when_absent() {
    for (text, subject) in
        [("sea", ANY), ("sea:fish", "fish"), ("sea:fish:cod", "fish"), ("sea:fish:cod:north", "fish")]
    {
        for topic in both_ways(text) {
            assert_eq!(topic.subject(), subject, "{text}");
        }
    }
}

/// Corresponds to Java `getType`, C++ `GetType`, Python `test_get_type`.
#[test]
fn the_type_is_all_that_follows_the_subject_and_any_when_absent() {
    for (text, types) in
        [("sea", ANY), ("sea:fish", ANY), ("sea:fish:cod", "cod"), ("sea:fish:cod:north", "cod:north")]
    {
        for topic in both_ways(text) {
            assert_eq!(topic.types(), types, "{text}");
        }
    }
}

fn parent(of: &str, children: &[&str], strangers: &[&str]) {
    for child in children {
        assert!(topic(of).is_parent(&topic(child)), "{of} is a parent of {child}");
    }
    for stranger in strangers {
        assert!(!topic(of).is_parent(&topic(stranger)), "{of} is no parent of {stranger}");
    }
}

/// Corresponds to Java `isParentCompareDomainVersusDomain`, `…VersusSubject`, `…VersusType`; C++
/// `IsParentCompareDomain`.
#[test]
fn a_domain_is_a_parent_of_all_below_it() {
    parent(
        "sea",
        &["sea", "sea:fish", "sea:bird", "sea:fish:cod", "sea:fish:eel", "sea:bird:gull"],
        &["land", "land:beast", "land:beast:fox"],
    );
}

/// Corresponds to Java `isParentCompareSubjectVersusDomain`, `…VersusSubject`, `…VersusType`; C++
/// `IsParentCompareSubject`; Python `test_is_parent_method`.
#[test]
fn a_subject_is_a_parent_of_its_types() {
    parent(
        "sea:fish",
        &["sea:fish", "sea:fish:cod", "sea:fish:eel"],
        &["sea", "sea:bird", "sea:bird:gull", "land", "land:fish", "land:fish:cod"],
    );
}

/// Corresponds to Java `isParentCompareTypeVersusDomain`, `…VersusSubject`, `…VersusType`; C++
/// `IsParentCompareType`.
#[test]
fn a_full_topic_is_a_parent_of_itself_alone() {
    parent(
        "sea:fish:cod",
        &["sea:fish:cod"],
        &[
            "sea",
            "sea:fish",
            "sea:fish:eel",
            "sea:bird",
            "sea:bird:gull",
            "land",
            "land:fish",
            "land:fish:cod",
        ],
    );
}
