//! Recordings: files of messages with their times. docs/recording.md describes the format byte by byte.
//!
//! A file consists of a header, blocks and a trailer. A block is a message, or several messages compressed
//! together, or the index, which is the last block. Each block has a length and a checksum, so that all
//! undamaged blocks can be read without the index, and even if other blocks are damaged.
//!
//! | module | content |
//! |---|---|
//! | [`block`] | encoding of header, blocks and trailer: pure functions, which validate every length |
//! | [`compression`] | the only module that uses zstd |
//! | [`index`] | the index at the end of a file |
//! | [`writer`] | writes a recording to any `Write` |
//! | [`reader`] | reads a recording from any `Read` and `Seek` |
//! | [`recorder`] | a thread that writes received messages, to one file or to numbered files |

pub(crate) mod block;
pub(crate) mod compression;
pub(crate) mod index;
pub(crate) mod reader;
pub(crate) mod recorder;
pub(crate) mod writer;

#[cfg(test)]
#[cfg(feature = "zstd")]
mod tests;
