#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| xmsg_fuzz::codec(data));
