//! Recordings: files of messages with their times. docs/recording.md describes the format byte by byte.
//!
//! A file consists of a header, blocks and a trailer. A block is a message, or several messages compressed
//! together, or the index, which is the last block. Each block has a length and a checksum, so that all
//! undamaged blocks can be read without the index, and even if other blocks are damaged.
//!
//! | file | answers |
//! |---|---|
//! | `block.rs` | What are the bytes of header, blocks and trailer, and are their lengths good? |
//! | `compression.rs` | How are blocks compressed? No other file uses `zstd`. |
//! | `index.rs` | What does the index say that is at the end of a file? |
//! | `writer.rs` | How is a recording written to any `Write`? |
//! | `reader.rs` | How is a recording read from any `Read` and `Seek`, even if it is damaged? |
//! | `recorder.rs` | Which thread writes what is received, and when does it begin another file? |

pub(crate) mod block;
pub(crate) mod compression;
pub(crate) mod index;
pub(crate) mod reader;
pub(crate) mod recorder;
pub(crate) mod writer;

#[cfg(test)]
#[cfg(feature = "zstd")]
mod tests;
