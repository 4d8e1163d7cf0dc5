//! `migrate-set-parameters` and `query-migrate-parameters`: every parameter's JSON form, listed once.

use serde_json::{Map, Value, json};
use whimbrel::error::CommandError;
use whimbrel::proto::parameters::{
    BitmapAlias, BitmapNode, MigrationMode, MultifdCompression, Parameters, ParametersPatch,
    ZeroPageDetection,
};

use crate::arguments::{Arguments, FromArguments, FromValue, NoArguments, StrOrNull, arguments, enumeration};
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new("migrate-set-parameters", Runs::MainLoop, set),
        Command::new("query-migrate-parameters", Runs::ReadOnly, |vm: &Vm, _: NoArguments| {
            Ok(to_json(&vm.engine.parameters()))
        }),
    ]
}

/// The enumerations among the parameters' types, for the schema.
pub(super) fn enumerations(mut tell: impl FnMut(&str, &[&str])) {
    tell("MultiFDCompression", &MultifdCompression::ALL.iter().map(|value| value.name()).collect::<Vec<_>>());
    tell("ZeroPageDetection", &ZeroPageDetection::ALL.iter().map(|value| value.name()).collect::<Vec<_>>());
    tell("MigMode", &MigrationMode::ALL.iter().map(|value| value.name()).collect::<Vec<_>>());
}

fn set(vm: &Vm, patch: ParametersPatch) -> Result<Value, CommandError> {
    vm.engine.set_parameters(patch)?;
    Ok(json!({}))
}

/// Each parameter: its field, its name, and how it is read if not as its own type.
macro_rules! members {
    ($($field:ident $name:literal $(as $read:ident)?;)*) => {
        impl FromArguments for ParametersPatch {
            fn read(arguments: &mut Arguments) -> Result<Self, CommandError> {
                Ok(Self { $($field: members!(@read arguments, $name $(, $read)?),)* })
            }
        }

        /// All parameters; of `block-bitmap-mapping` there is nothing until it was set.
        pub(super) fn to_json(parameters: &Parameters) -> Value {
            let mut members = Map::new();
            $(
                if let Some(value) = parameters.$field.to_member() {
                    members.insert($name.into(), value);
                }
            )*
            Value::Object(members)
        }
    };
    (@read $arguments:ident, $name:literal) => { $arguments.take($name)? };
    (@read $arguments:ident, $name:literal, $read:ident) => {
        $arguments.take::<Option<$read>>($name)?.map(Into::into)
    };
}

members! {
    announce_initial "announce-initial";
    announce_max "announce-max";
    announce_rounds "announce-rounds";
    announce_step "announce-step";
    throttle_trigger_threshold "throttle-trigger-threshold";
    cpu_throttle_initial "cpu-throttle-initial";
    cpu_throttle_increment "cpu-throttle-increment";
    cpu_throttle_tailslow "cpu-throttle-tailslow";
    tls_creds "tls-creds" as StrOrNull;
    tls_hostname "tls-hostname" as StrOrNull;
    tls_authz "tls-authz" as StrOrNull;
    max_bandwidth "max-bandwidth";
    avail_switchover_bandwidth "avail-switchover-bandwidth";
    downtime_limit "downtime-limit";
    x_checkpoint_delay "x-checkpoint-delay";
    multifd_channels "multifd-channels";
    multifd_compression "multifd-compression";
    multifd_zlib_level "multifd-zlib-level";
    multifd_qatzip_level "multifd-qatzip-level";
    multifd_zstd_level "multifd-zstd-level";
    xbzrle_cache_size "xbzrle-cache-size";
    max_postcopy_bandwidth "max-postcopy-bandwidth";
    max_cpu_throttle "max-cpu-throttle";
    block_bitmap_mapping "block-bitmap-mapping" as BitmapMapping;
    x_vcpu_dirty_limit_period "x-vcpu-dirty-limit-period";
    vcpu_dirty_limit "vcpu-dirty-limit";
    mode "mode";
    zero_page_detection "zero-page-detection";
    direct_io "direct-io";
}

impl From<StrOrNull> for String {
    fn from(text: StrOrNull) -> Self {
        text.0
    }
}

// ---- Values with a form of their own ----

macro_rules! enumerations {
    ($($type:ident),*) => {
        $(
            impl FromValue for $type {
                fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
                    enumeration(value, path, Self::from_name)
                }
            }

            impl ToMember for $type {
                fn to_member(&self) -> Option<Value> {
                    Some(self.name().into())
                }
            }
        )*
    };
}

enumerations!(MultifdCompression, MigrationMode, ZeroPageDetection);

arguments! {
    /// A node of `block-bitmap-mapping`.
    struct Node {
        node_name: String = "node-name",
        alias: String = "alias",
        bitmaps: Vec<Bitmap> = "bitmaps",
    }

    /// A bitmap of a node.
    struct Bitmap {
        name: String = "name",
        alias: String = "alias",
        transform: Option<Transform> = "transform",
    }

    /// What becomes of a bitmap at the destination.
    struct Transform {
        persistent: Option<bool> = "persistent",
    }
}

/// The list, read.
struct BitmapMapping(Vec<BitmapNode>);

impl FromValue for BitmapMapping {
    fn from_value(value: Value, path: &str) -> Result<Self, CommandError> {
        let bitmap = |Bitmap { name, alias, transform }| {
            let persistent = transform.and_then(|transform: Transform| transform.persistent);
            BitmapAlias { name, alias, persistent }
        };
        let node = |Node { node_name, alias, bitmaps }| {
            let bitmaps = bitmaps.into_iter().map(bitmap).collect();
            BitmapNode { node_name, alias, bitmaps }
        };
        let nodes: Vec<Node> = FromValue::from_value(value, path)?;
        Ok(Self(nodes.into_iter().map(node).collect()))
    }
}

impl From<BitmapMapping> for Option<Vec<BitmapNode>> {
    fn from(mapping: BitmapMapping) -> Self {
        Some(mapping.0)
    }
}

/// A parameter's value as a member; `None` leaves it out.
trait ToMember {
    fn to_member(&self) -> Option<Value>;
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl ToMember for $type {
            fn to_member(&self) -> Option<Value> {
                Some(json!(self))
            }
        })*
    };
}

plain!(u8, u32, u64, bool, String);

impl ToMember for Option<Vec<BitmapNode>> {
    fn to_member(&self) -> Option<Value> {
        let bitmap = |bitmap: &BitmapAlias| {
            let mut members = json!({"name": bitmap.name, "alias": bitmap.alias});
            if let Some(persistent) = bitmap.persistent {
                members["transform"] = json!({ "persistent": persistent });
            }
            members
        };
        let node = |node: &BitmapNode| {
            let bitmaps: Value = node.bitmaps.iter().map(bitmap).collect();
            json!({"bitmaps": bitmaps, "node-name": node.node_name, "alias": node.alias})
        };
        self.as_ref().map(|nodes| nodes.iter().map(node).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<ParametersPatch, String> {
        let Value::Object(members) = value else { panic!("an object") };
        ParametersPatch::read_all(Arguments::new(members)).map_err(|error| error.desc)
    }

    /// Seen from QEMU 10.0.2's `query-migrate-parameters`.
    fn qemu_defaults() -> Value {
        json!({
            "cpu-throttle-tailslow": false, "xbzrle-cache-size": 67108864, "cpu-throttle-initial": 20,
            "announce-max": 550, "direct-io": false, "avail-switchover-bandwidth": 0,
            "zero-page-detection": "multifd", "multifd-qatzip-level": 1, "multifd-channels": 2, "mode": "normal",
            "multifd-zstd-level": 1, "announce-initial": 50, "downtime-limit": 300, "tls-authz": "",
            "vcpu-dirty-limit": 1, "multifd-compression": "none", "announce-rounds": 5, "announce-step": 100,
            "tls-creds": "", "x-vcpu-dirty-limit-period": 1000, "multifd-zlib-level": 1, "max-cpu-throttle": 99,
            "max-postcopy-bandwidth": 0, "tls-hostname": "", "throttle-trigger-threshold": 50,
            "max-bandwidth": 134217728, "x-checkpoint-delay": 20000, "cpu-throttle-increment": 10
        })
    }

    #[test]
    fn the_defaults_are_qemus_member_by_member() {
        assert_eq!(to_json(&Parameters::default()), qemu_defaults());
        assert_eq!(
            Parameters::NAMES.len(),
            qemu_defaults().as_object().unwrap().len() + 1,
            "and the mapping"
        );
    }

    #[test]
    fn what_is_set_is_what_is_shown() {
        let mapping = json!([{"bitmaps": [{"name": "x", "alias": "y", "transform": {"persistent": true}}, {"name": "z", "alias": "w"}],
                              "node-name": "a", "alias": "b"}]);
        let mut all = qemu_defaults();
        for (name, value) in [
            ("downtime-limit", json!(5)),
            ("multifd-compression", json!("zstd")),
            ("tls-creds", json!("tls0")),
            ("direct-io", json!(true)),
            ("x-checkpoint-delay", json!(7)),
            ("block-bitmap-mapping", mapping),
        ] {
            all[name] = value;
        }
        let patch = read(all.clone()).unwrap();
        assert_eq!(to_json(&Parameters::default().apply(patch).unwrap()), all);
    }

    #[test]
    fn null_takes_tls_away() {
        let patch = read(json!({"tls-creds": null})).unwrap();
        assert_eq!(patch, ParametersPatch { tls_creds: Some(String::new()), ..Default::default() });
    }

    /// Seen from QEMU 10.0.2.
    #[test]
    fn what_is_no_parameter_gets_qemus_text() {
        for (value, text) in [
            (json!({"bogus": 5}), "Parameter 'bogus' is unexpected"),
            (json!({"downtime-limit": "5"}), "Parameter 'downtime-limit' expects uint64"),
            (json!({"multifd-channels": 256}), "Parameter 'multifd-channels' expects uint8_t"),
            (json!({"x-checkpoint-delay": -1}), "Parameter 'x-checkpoint-delay' expects uint32_t"),
            (json!({"tls-creds": 5}), "Invalid parameter type for 'tls-creds', expected: StrOrNull"),
            (
                json!({"cpu-throttle-tailslow": 5}),
                "Invalid parameter type for 'cpu-throttle-tailslow', expected: boolean",
            ),
            (
                json!({"multifd-compression": "lz4"}),
                "Parameter 'multifd-compression' does not accept value 'lz4'",
            ),
            (json!({"mode": 5}), "Invalid parameter type for 'mode', expected: string"),
            (
                json!({"block-bitmap-mapping": 5}),
                "Invalid parameter type for 'block-bitmap-mapping', expected: array",
            ),
            (
                json!({"block-bitmap-mapping": [{"node-name": "a", "alias": "b", "bitmaps": [{"name": "x", "z": "y"}]}]}),
                "Parameter 'block-bitmap-mapping[0].bitmaps[0].alias' is missing",
            ),
        ] {
            assert_eq!(read(value.clone()).unwrap_err(), text, "{value}");
        }
    }
}
