//! Compression with zstd, one frame for each block.

#[cfg(feature = "zstd")]
pub(crate) use with_zstd::{Compressor, Decompressor};
#[cfg(not(feature = "zstd"))]
pub(crate) use without_zstd::{Compressor, Decompressor};

#[cfg(feature = "zstd")]
mod with_zstd {
    use std::fmt;
    use std::io;

    /// The fastest level, because a recording is written while messages arrive.
    const LEVEL: i32 = 1;

    pub(crate) struct Compressor(zstd::bulk::Compressor<'static>);

    impl Compressor {
        pub(crate) fn new() -> io::Result<Self> {
            zstd::bulk::Compressor::new(LEVEL).map(Self)
        }

        pub(crate) fn compress(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
            self.0.compress(raw)
        }
    }

    impl fmt::Debug for Compressor {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Compressor").finish_non_exhaustive()
        }
    }

    pub(crate) struct Decompressor(zstd::bulk::Decompressor<'static>);

    impl Decompressor {
        pub(crate) fn new() -> io::Result<Self> {
            zstd::bulk::Decompressor::new().map(Self)
        }

        /// Decompresses data that must have exactly this length. Longer data is not unpacked. Returns `None`
        /// if the data can't be decompressed, and an error if there is no memory for it.
        pub(crate) fn decompress(
            &mut self,
            compressed: &[u8],
            raw_len: usize,
        ) -> io::Result<Option<Vec<u8>>> {
            let mut raw = Vec::new();
            raw.try_reserve_exact(raw_len)
                .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
            let is_good = self.0.decompress_to_buffer(compressed, &mut raw).is_ok() && raw.len() == raw_len;
            Ok(is_good.then_some(raw))
        }
    }

    impl fmt::Debug for Decompressor {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Decompressor").finish_non_exhaustive()
        }
    }
}

#[cfg(not(feature = "zstd"))]
mod without_zstd {
    use std::io;

    fn absent() -> io::Error {
        io::Error::new(io::ErrorKind::Unsupported, "this xmsg was built without zstd (feature `zstd`)")
    }

    #[derive(Debug)]
    pub(crate) struct Compressor(std::convert::Infallible);

    impl Compressor {
        pub(crate) fn new() -> io::Result<Self> {
            Err(absent())
        }

        pub(crate) fn compress(&mut self, _: &[u8]) -> io::Result<Vec<u8>> {
            match self.0 {}
        }
    }

    #[derive(Debug)]
    pub(crate) struct Decompressor(std::convert::Infallible);

    impl Decompressor {
        pub(crate) fn new() -> io::Result<Self> {
            Err(absent())
        }

        pub(crate) fn decompress(&mut self, _: &[u8], _: usize) -> io::Result<Option<Vec<u8>>> {
            match self.0 {}
        }
    }
}
