//! Recordings: files of messages with their times, as docs/recording.md describes them byte by byte.
//!
//! A file is a header, blocks, and a trailer. A block is a message, several messages compressed together, or the
//! index, which stands at the end. Each block has a length and a checksum, so that whatever is whole can be read
//! without the index, and without what is damaged.
//!
//! | module | what is in it |
//! |---|---|
//! | [`block`] | header, blocks and trailer as bytes: pure functions, which trust no length |
//! | [`compression`] | the only place that knows zstd |
//! | [`index`] | what the end of a file tells of it |
//! | [`writer`] | a recording into anything that can be written to |
//! | [`reader`] | a recording from anything that can be read and sought in |
//! | [`recorder`] | a thread that writes what came in, into one file or into numbered ones |

pub(crate) mod block;
pub(crate) mod compression;
pub(crate) mod index;
pub(crate) mod reader;
pub(crate) mod recorder;
pub(crate) mod writer;

#[cfg(test)]
#[cfg(feature = "zstd")]
mod tests;
