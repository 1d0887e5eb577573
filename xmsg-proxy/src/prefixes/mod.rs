//! A table that finds all subscriptions to prefixes of a topic. It consists of hash tables of whole prefixes.
//!
//! The *heads* of a topic or prefix are its first 8, 16, … 64, then 128, 256 … bytes. A table stores for each
//! head of a prefix which lengths the prefixes with this head have, up to the next head. Beyond 64 bytes, it
//! stores these lengths only approximately. So a topic costs one lookup for each of its heads, as long as
//! there are prefixes with that head, and one for each length that is possible.
//!
//! The number of prefixes does not increase this cost. Heads are few and stay in the processor's cache. A
//! prefix that is found is in two places that are not in the cache. (A trie is as good for a few thousand
//! prefixes. Among a million, a topic walks through ten nodes, each known only from the one before, and most
//! of them not in a cache.)
//!
//! Prefixes are stored in an arena, so that a subscriber can refer to its subscriptions by [`PrefixId`] and
//! need not store their text a second time.
//!
//! | file | what it has |
//! |---|---|
//! | `table.rs` | [`PrefixTable`]: insertion, removal, and the search for all prefixes of a topic |
//! | `hash_index.rs` | the hash table from the hash of a prefix to its place |
//! | `hash.rs` | the keyed hash of all prefixes of a topic |
//! | `arena.rs` | the prefixes themselves, each in a fixed place |

mod arena;
mod hash;
mod hash_index;
mod table;

pub use self::table::{Inserted, PrefixId, PrefixTable, heads};
