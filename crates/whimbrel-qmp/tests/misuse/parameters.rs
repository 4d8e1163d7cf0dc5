//! Every parameter: both ends of its range, one beyond each, a wrong type; and what a version does not know.

use serde_json::{Value, json};

use super::{Asked, Raw, generic, ok, set_parameter};

/// Where a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    ToAll,
    /// Not to 7.2.
    To10,
    /// To 7.2 only: gone in 9.1, and never ours.
    To7,
}

use Known::{To7, To10, ToAll};

struct Parameter {
    name: &'static str,
    known: Known,
    /// Both ends of its range, and at last its default.
    taken: Vec<Value>,
    /// What is beyond, or of a wrong type, and why.
    refused: Vec<(Value, String)>,
    /// What only 10.0 refuses.
    taken_by_7: Vec<Value>,
}

/// Everything that `query-migrate-parameters` of 10.0 may show.
const NAMES_OF_10: usize = 29;

/// QEMU spells the name with underscores where it tells a range.
fn range(name: &str, range: &str) -> String {
    format!("Parameter '{}' expects {range}", name.replace('-', "_"))
}

fn kind(name: &str, kind: &str) -> String {
    format!("Parameter '{name}' expects {kind}")
}

fn wrong(name: &str, kind: &str) -> String {
    format!("Invalid parameter type for '{name}', expected: {kind}")
}

impl Parameter {
    fn new<const N: usize>(name: &'static str, taken: [Value; N]) -> Self {
        Self { name, known: ToAll, taken: taken.into(), refused: Vec::new(), taken_by_7: Vec::new() }
    }

    /// A number from `low` to `high`, both taken, with what the text says to those beyond.
    fn number(name: &'static str, [low, high]: [u64; 2], default: u64, text: &str) -> Self {
        let text = range(name, text);
        let below = low.checked_sub(1).map_or(json!(-1), Value::from);
        Self::new(name, [json!(low), json!(high), json!(default)])
            .refuses(below, text.clone())
            .refuses(json!(high + 1), text)
            .typed("uint64")
    }

    /// A whole range of a type of its own; beyond its high end is no such type.
    fn whole(name: &'static str, high: u64, default: u64, narrow: &str) -> Self {
        let beyond = u128::from(high) + 1;
        let beyond: Value = serde_json::from_str(&beyond.to_string()).unwrap();
        Self::new(name, [json!(0), json!(high), json!(default)])
            .refuses(beyond, kind(name, narrow))
            .typed("uint64")
    }

    fn switch(name: &'static str) -> Self {
        let text = wrong(name, "boolean");
        Self::new(name, [json!(true), json!(false)])
            .refuses(json!(1), text.clone())
            .refuses(json!("on"), text)
    }

    fn text(name: &'static str) -> Self {
        Self::new(name, [json!("x"), json!(""), json!(null)]).refuses(json!(5), wrong(name, "StrOrNull"))
    }

    fn one_of<const N: usize>(name: &'static str, values: [&str; N], other: &str) -> Self {
        Self::new(name, values.map(Value::from))
            .refuses(json!(other), format!("Parameter '{name}' does not accept value '{other}'"))
            .refuses(json!(5), wrong(name, "string"))
    }

    fn typed(self, of: &str) -> Self {
        let text = kind(self.name, of);
        self.refuses(json!("5"), text.clone()).refuses(json!(1.5), text)
    }

    fn refuses(mut self, value: Value, text: String) -> Self {
        self.refused.push((value, text));
        self
    }

    /// Above this there is another text: the type is as narrow.
    fn narrow(self, value: u64, of: &str) -> Self {
        let text = kind(self.name, of);
        self.refuses(json!(value), text)
    }

    fn taken_by_7(mut self, value: u64) -> Self {
        self.taken_by_7.push(json!(value));
        self
    }

    fn known(self, known: Known) -> Self {
        Self { known, ..self }
    }
}

fn table() -> Vec<Parameter> {
    let percent = "an integer in the range of 1 to 99";
    let power = "a power of two no less than the target page size";
    let at_least = "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s";
    vec![
        Parameter::number("announce-initial", [0, 100_000], 50, "a value between 0 and 100000"),
        Parameter::number("announce-max", [0, 100_000], 550, "a value between 0 and 100000"),
        Parameter::number("announce-rounds", [0, 1000], 5, "a value between 0 and 1000"),
        // The text allows what is refused.
        Parameter::number("announce-step", [1, 10_000], 100, "a value between 0 and 10000"),
        Parameter::number("throttle-trigger-threshold", [1, 100], 50, "an integer in the range of 1 to 100")
            .narrow(256, "uint8_t"),
        Parameter::number("cpu-throttle-initial", [1, 99], 20, percent).narrow(256, "uint8_t"),
        Parameter::number("cpu-throttle-increment", [1, 99], 10, percent).narrow(256, "uint8_t"),
        Parameter::switch("cpu-throttle-tailslow"),
        // Its low end is cpu-throttle-initial.
        Parameter::number(
            "max-cpu-throttle",
            [20, 99],
            99,
            "an integer in the range of cpu_throttle_initial to 99",
        ),
        Parameter::text("tls-creds"),
        Parameter::text("tls-hostname"),
        Parameter::text("tls-authz"),
        Parameter::whole("max-bandwidth", u64::MAX, 128 << 20, "uint64"),
        Parameter::whole("avail-switchover-bandwidth", u64::MAX, 0, "uint64").known(To10),
        Parameter::number(
            "downtime-limit",
            [0, 2_000_000],
            300,
            "an integer in the range of 0 to (2000 * 1000) ms",
        ),
        Parameter::whole("x-checkpoint-delay", u64::from(u32::MAX), 20_000, "uint32_t"),
        Parameter::new("multifd-channels", [json!(1), json!(255), json!(2)])
            .refuses(json!(0), range("multifd-channels", "a value between 1 and 255"))
            .narrow(256, "uint8_t")
            .typed("uint64"),
        Parameter::one_of("multifd-compression", ["zlib", "zstd", "none"], "lz4"),
        Parameter::new("multifd-zlib-level", [json!(0), json!(9), json!(1)])
            .refuses(json!(10), range("multifd-zlib-level", "a value between 0 and 9"))
            .taken_by_7(10)
            .narrow(256, "uint8_t")
            .typed("uint64"),
        Parameter::new("multifd-zstd-level", [json!(0), json!(20), json!(1)])
            .refuses(json!(21), range("multifd-zstd-level", "a value between 0 and 20"))
            .taken_by_7(21)
            .narrow(256, "uint8_t")
            .typed("uint64"),
        Parameter::number("multifd-qatzip-level", [1, 9], 1, "a value between 1 and 9").known(To10),
        Parameter::new("xbzrle-cache-size", [json!(4096), json!(1_u64 << 63), json!(64 << 20)])
            .refuses(json!(2048), range("xbzrle-cache-size", power))
            .refuses(json!(4095), range("xbzrle-cache-size", power))
            .refuses(json!(4097), range("xbzrle-cache-size", power))
            .refuses(json!(u64::MAX), range("xbzrle-cache-size", power))
            .typed("uint64"),
        Parameter::whole("max-postcopy-bandwidth", u64::MAX, 0, "uint64"),
        Parameter::new("block-bitmap-mapping", [json!([])])
            .refuses(json!(5), wrong("block-bitmap-mapping", "array")),
        Parameter::number("x-vcpu-dirty-limit-period", [1, 1000], 1000, "")
            .worded("Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000")
            .known(To10),
        Parameter::new("vcpu-dirty-limit", [json!(u64::MAX), json!(1)])
            .refuses(json!(0), at_least.into())
            .typed("uint64")
            .known(To10),
        Parameter::one_of("mode", ["cpr-reboot", "cpr-transfer", "normal"], "cpr-exec").known(To10),
        Parameter::one_of("zero-page-detection", ["none", "legacy", "multifd"], "x").known(To10),
        Parameter::switch("direct-io").known(To10),
        Parameter::new("compress-level", [json!(0), json!(9), json!(1)])
            .refuses(json!(10), range("compress-level", "a value between 0 and 9"))
            .known(To7),
        Parameter::number("compress-threads", [1, 255], 8, "a value between 1 and 255")
            .narrow_end()
            .known(To7),
        Parameter::number("decompress-threads", [1, 255], 2, "a value between 1 and 255")
            .narrow_end()
            .known(To7),
        Parameter::switch("compress-wait-thread").ends_with(true).known(To7),
        Parameter::switch("block-incremental").known(To7),
        Parameter::new("bogus", []).refuses(json!(0), "Parameter 'bogus' is unexpected".into()),
    ]
}

impl Parameter {
    /// What is beyond the range is told in these words.
    fn worded(mut self, text: &str) -> Self {
        for (_, told) in &mut self.refused[..2] {
            *told = text.into();
        }
        self
    }

    /// Its default.
    fn ends_with(mut self, default: bool) -> Self {
        self.taken.push(json!(default));
        self
    }

    /// The range ends where its type does.
    fn narrow_end(mut self) -> Self {
        self.refused[1].1 = kind(self.name, "uint8_t");
        self
    }
}

/// Each value of each parameter, on a connection that has negotiated. In the end all are as they were, but for what is absent
/// until it is set.
pub(crate) fn converse_about_parameters(raw: &mut Raw, asked: Asked) {
    let query = r#"{"execute":"query-migrate-parameters"}"#;
    let before = raw.ask(query)["return"].take();
    let table = table();
    let ours = table.iter().filter(|parameter| parameter.known != To7 && parameter.name != "bogus");
    assert_eq!(ours.count(), NAMES_OF_10);
    for name in before.as_object().unwrap().keys() {
        assert!(table.iter().any(|parameter| parameter.name == name), "{asked:?}: {name} is in no row");
    }
    for Parameter { name, known, taken, refused, taken_by_7 } in table {
        let is_known = match asked {
            Asked::Qemu7 => known != To10,
            Asked::Qemu10 | Asked::Whimbrel => known != To7,
        };
        let refused = refused.into_iter().map(|(value, text)| {
            let is_taken = asked == Asked::Qemu7 && taken_by_7.contains(&value);
            (value, if is_taken { ok() } else { generic(&text) })
        });
        for (value, answer) in refused.chain(taken.into_iter().map(|value| (value, ok()))) {
            let unexpected = generic(&format!("Parameter '{name}' is unexpected"));
            let expected = if is_known { answer } else { unexpected };
            assert_eq!(raw.ask(&set_parameter(name, &value)), expected, "{asked:?}: {name} {value}");
        }
    }
    let mut after = raw.ask(query)["return"].take();
    after.as_object_mut().unwrap().shift_remove("block-bitmap-mapping");
    for (name, value) in before.as_object().unwrap() {
        assert_eq!(after[name], *value, "{asked:?}: {name}");
    }
}
