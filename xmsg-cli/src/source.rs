//! Input of messages as a whole, by lines or by NUL bytes, from an argument, a file or standard input, in
//! bounded memory.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use xmsg_core::{Error, ErrorKind};

/// The size of one read, in bytes.
const READ_LEN: usize = 256 << 10;
/// The number of blocks that may wait to be published. When they do, reading pauses.
const BLOCKS_MAX: usize = 4;

/// How input is split into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// All input is one message.
    Whole,
    /// Each line is a message. It includes the newline unless `chomp` is set. A carriage return is always
    /// kept.
    Lines { chomp: bool },
    /// NUL bytes separate messages, and are not included.
    Null,
}

impl Split {
    fn delimiter(self) -> Option<u8> {
        match self {
            Self::Whole => None,
            Self::Lines { .. } => Some(b'\n'),
            Self::Null => Some(0),
        }
    }

    /// Takes the next message from the front of a block of whole messages.
    fn take(self, block: &mut Bytes) -> Bytes {
        let Some(delimiter) = self.delimiter() else { return std::mem::take(block) };
        // Reading from a slice cannot fail.
        let len = (&block[..]).skip_until(delimiter).unwrap_or(block.len());
        let mut message = block.split_to(len);
        let strip = !matches!(self, Self::Lines { chomp: false });
        if strip && message.last() == Some(&delimiter) {
            message.truncate(len - 1);
        }
        message
    }
}

/// The size limit of one message, and the error when it is exceeded.
#[derive(Clone, Debug)]
pub(crate) struct InputLimit {
    /// The verb for what is done with messages, for errors.
    pub(crate) verb: &'static str,
    /// The largest number of bytes of input for one message.
    pub(crate) limit: usize,
    /// The error of kind [`TooLarge`](ErrorKind::TooLarge) for a longer message.
    pub(crate) too_long: Error,
}

/// The messages of an input, in order.
#[derive(Debug)]
pub(crate) struct Source {
    split: Split,
    blocks: mpsc::Receiver<anyhow::Result<Bytes>>,
    block: Option<Bytes>,
}

impl Source {
    /// Reads messages from memory.
    pub(crate) fn memory(data: Bytes, split: Split) -> Self {
        let (_, blocks) = mpsc::channel(1);
        Self { split, blocks, block: (split == Split::Whole || !data.is_empty()).then_some(data) }
    }

    /// Reads messages from a file.
    pub(crate) fn file(path: &Path, split: Split, portion: InputLimit) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        Self::reader(file, name, split, portion)
    }

    /// Reads messages from standard input.
    pub(crate) fn stdin(split: Split, portion: InputLimit) -> anyhow::Result<Self> {
        Self::reader(io::stdin(), "standard input".to_owned(), split, portion)
    }

    fn reader(
        input: impl Read + Send + 'static,
        name: String,
        split: Split,
        portion: InputLimit,
    ) -> anyhow::Result<Self> {
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        // The thread is never joined, because a read from a terminal cannot be cancelled. It ends with the
        // input, when the receiver is dropped, or with the process.
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                let what = format!("cannot {} {name}", portion.verb);
                let send = |block: xmsg_core::Result<Bytes>| {
                    let named = |error| anyhow::Error::from(error).context(what.clone());
                    sender.blocking_send(block.map_err(named)).is_ok()
                };
                if let Err(error) = read_blocks(input, split, &portion, send) {
                    let _ = sender.blocking_send(Err(error.context(what.clone())));
                }
            })
            .context("cannot start a thread for the input")?;
        Ok(Self { split, blocks, block: None })
    }

    /// Returns the next message; `None` at the end of the input. An error of kind
    /// [`TooLarge`](ErrorKind::TooLarge) stands for one message; the next call continues after it.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        let mut block = match self.block.take() {
            Some(block) => block,
            None => match self.blocks.recv().await {
                Some(block) => block?,
                None => return Ok(None),
            },
        };
        let message = self.split.take(&mut block);
        self.block = (!block.is_empty()).then_some(block);
        Ok(Some(message))
    }
}

/// Reads blocks of whole messages until the input ends, or the receiver is dropped.
fn read_blocks(
    mut input: impl Read,
    split: Split,
    portion: &InputLimit,
    mut send: impl FnMut(xmsg_core::Result<Bytes>) -> bool,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; READ_LEN];
    let mut pending = BytesMut::new();
    // The rest of a message that is too long is skipped.
    let mut passing_over = false;
    loop {
        let len = match input.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("reading failed"),
        };
        if len == 0 {
            break;
        }
        let mut read = &buffer[..len];
        if passing_over {
            let end = read.iter().position(|byte| Some(*byte) == split.delimiter());
            let Some(end) = end else { continue };
            (read, passing_over) = (&read[end + 1..], false);
        }
        let end = split.delimiter().and_then(|delimiter| read.iter().rposition(|byte| *byte == delimiter));
        if let Some(end) = end {
            pending.extend_from_slice(&read[..=end]);
            if !send(Ok(pending.split().freeze())) {
                return Ok(());
            }
            pending.extend_from_slice(&read[end + 1..]);
        } else {
            pending.extend_from_slice(read);
        }
        if pending.len() > portion.limit {
            pending = BytesMut::new();
            passing_over = true;
            if !send(Err(portion.too_long.clone())) || split == Split::Whole {
                return Ok(());
            }
        }
    }
    // An empty input is one empty message as a whole, but has no lines.
    if !passing_over && (split == Split::Whole || !pending.is_empty()) {
        send(Ok(pending.freeze()));
    }
    Ok(())
}

/// Makes the error for a message that is longer than `limit`.
pub(crate) fn too_long(limit: usize) -> Error {
    let what = format!(
        "a message is longer than {limit} bytes, the most that fits into a message of 64 MiB with its topic and \
         metadata: split it (`xmsg pub -l` publishes lines)"
    );
    Error::new(ErrorKind::TooLarge, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHOMP: Split = Split::Lines { chomp: true };
    const KEEP: Split = Split::Lines { chomp: false };

    /// Returns its data in pieces of the given sizes, as a pipe does.
    struct Pieces<'a>(&'a [u8], std::slice::Iter<'a, usize>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len =
                self.1.next().map_or(self.0.len(), |len| *len).max(1).min(self.0.len()).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    fn messages(data: &[u8], sizes: &[usize], split: Split, limit: usize) -> anyhow::Result<Vec<Bytes>> {
        let (mut messages, mut too_long) = (Vec::new(), None);
        read_blocks(Pieces(data, sizes.iter()), split, &portion(limit), |block| {
            let Ok(mut block) = block.map_err(|error| too_long = Some(error)) else { return false };
            loop {
                messages.push(split.take(&mut block));
                if block.is_empty() {
                    return true;
                }
            }
        })?;
        too_long.map_or(Ok(messages), |error| Err(error.into()))
    }

    fn portion(limit: usize) -> InputLimit {
        InputLimit { verb: "publish", limit, too_long: too_long(limit) }
    }

    fn all(data: &str, split: Split) -> Vec<Bytes> {
        messages(data.as_bytes(), &[], split, 100).unwrap()
    }

    #[test]
    fn lines_keep_their_newline_unless_told_otherwise() {
        assert_eq!(all("a\r\n\nb", KEEP), ["a\r\n", "\n", "b"]);
        assert_eq!(all("a\r\n\nb", CHOMP), ["a\r", "", "b"]);
        assert_eq!(all("a\n", CHOMP), ["a"]);
        assert_eq!(all("", CHOMP), [""; 0]);
    }

    #[test]
    fn nul_separates() {
        assert_eq!(all("a\n\0\0b", Split::Null), ["a\n", "", "b"]);
        assert_eq!(all("a\0", Split::Null), ["a"]);
    }

    #[test]
    fn the_whole_is_one_message_even_if_empty() {
        assert_eq!(all("a\n\0b\n", Split::Whole), ["a\n\0b\n"]);
        assert_eq!(all("", Split::Whole), [""]);
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let error = messages(&[b'x'; 101], &[], KEEP, 100).unwrap_err();
        assert!(error.to_string().contains("longer than 100 bytes"), "{error}");
        assert!(messages(&[b'x'; 101], &[7; 20], Split::Whole, 100).is_err());
    }

    #[test]
    fn what_is_behind_a_line_that_is_too_long_is_read() {
        let data = ["one\n", &"x".repeat(500), "\ntwo\n", &"y".repeat(130)].concat();
        for size in [1, 7, 50, 97] {
            let (mut short, mut too_long) = (Vec::new(), 0);
            let sizes = [size; 1000];
            read_blocks(Pieces(data.as_bytes(), sizes.iter()), KEEP, &portion(100), |block| {
                match block {
                    Ok(block) => short.extend_from_slice(&block),
                    Err(error) => too_long += u32::from(error.kind() == ErrorKind::TooLarge),
                }
                true
            })
            .unwrap();
            assert_eq!((&short[..], too_long), (&b"one\ntwo\n"[..], 2), "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn memory_and_files_give_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (data, split) in [("a\nb", KEEP), ("", KEEP), ("", Split::Whole), ("a\0", Split::Null)] {
            std::fs::write(file.path(), data).unwrap();
            let mut results = Vec::new();
            for mut source in
                [Source::memory(data.into(), split), Source::file(file.path(), split, portion(100)).unwrap()]
            {
                let mut messages = Vec::new();
                while let Some(message) = source.next().await.unwrap() {
                    messages.push(message);
                }
                results.push(messages);
            }
            assert_eq!(results[0], results[1], "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn lines_are_the_input_however_it_is_cut(
            data in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(0), any::<u8>()], 0..200),
            sizes in prop::collection::vec(1_usize..20, 0..50),
        ) {
            let lines = messages(&data, &sizes, KEEP, 1000).unwrap();
            prop_assert_eq!(lines.concat(), data.clone());
            for (n, line) in lines.iter().enumerate() {
                let newline = line.iter().position(|byte| *byte == b'\n');
                prop_assert!(newline.map_or(n == lines.len() - 1, |at| at == line.len() - 1));
            }
            let chomped = messages(&data, &sizes, CHOMP, 1000).unwrap();
            let expected: Vec<_> =
                lines.iter().map(|line| line.strip_suffix(b"\n").unwrap_or(line).to_vec()).collect();
            prop_assert_eq!(chomped, expected);
            prop_assert_eq!(messages(&data, &sizes, Split::Whole, 1000).unwrap().concat(), data);
        }
    }
}
