//! Times and sizes as a person writes them.

use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// `250ms`, `10s`, `5m`, `2h`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let milliseconds =
        counted(text, &units).ok_or_else(|| format!("'{text}': write a time such as 250ms, 10s, 5m or 2h"))?;
    Ok(Duration::from_millis(milliseconds))
}

/// `4096`, `64KiB`, `16MiB`, `4GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
    counted(text, &units).ok_or_else(|| format!("'{text}': write a size such as 4096, 64KiB, 16MiB or 4GiB"))
}

/// Levels of messages, as in `RUST_LOG`. There a word that is no level is the name of a part of the program, of which everything is
/// told, and of all others nothing; who writes `warning` does not mean that.
pub(crate) fn levels(text: &str) -> Result<String, String> {
    let list: Vec<&str> = text.split(',').map(str::trim).collect();
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let names_a_part = |word: &str| word.contains("::") || word.contains(['=', '[', ']', '{', '}']);
    let levels = "off, error, warn, info, debug, trace, or PART=LEVEL, such as shoaldb=debug";
    if let Some(word) = list.iter().find(|word| !word.is_empty() && !is_level(word) && !names_a_part(word)) {
        return Err(format!("'{word}' is no level: write {levels}"));
    }
    let text = list.join(",");
    match EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("'{text}': {error}: write {levels}")),
    }
}

/// A size as a person reads it: in the largest unit of which there is one, with a digit behind the point where that says more.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Of a node: 1 to 65535.
pub(crate) fn node_id(text: &str) -> Result<u16, String> {
    let id = text.trim().parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| "write the id of a node, a number from 1 to 65535".to_string())
}

/// A number of anything.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| "write a number, such as 12".to_string())
}

/// The first unit that ends the text decides.
fn counted(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let number = |(unit, factor): &(&str, u64)| Some((text.strip_suffix(unit)?, *factor));
    let (number, factor) = units.iter().find_map(number)?;
    number.trim_end().parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(time("10 s"), Ok(Duration::from_secs(10)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "10", "s", "-1s", "1d", "99999999999999999999h", "18446744073709551615h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("4 GiB"), Ok(4 << 30));
        for (size, told) in [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")] {
            assert_eq!(bytes(size), told);
        }
        assert_eq!(bytes((5 << 30) + (512 << 20)), "5.5 GiB");
        for wrong in ["", "KiB", "1kb", "-1", "18446744073709551615KiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
