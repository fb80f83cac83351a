#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shoaldb_fuzz::entry(data);
});
