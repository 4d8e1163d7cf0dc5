//! `query-qmp-schema`: what exists, in the form QEMU's clients read.
//!
//! The schema is written down once, in a line for each entity, and read when it is asked for:
//!
//! ```text
//! command NAME members… -> TYPE        object NAME members… [by TAG case:TYPE …]
//! event NAME members…                  enum NAME values…        alternate NAME TYPES…
//! ```
//!
//! A member is `name:type`, `?name:type` if it is optional; a type is a built-in, an entity's name, or `[type]`. What the code
//! already lists (run states, statuses, capabilities, parameters) is taken from there. As in QEMU, a type's name means nothing
//! to a client; here it is readable.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use whimbrel::proto::capabilities::Capability;
use whimbrel::proto::parameters::Parameters;
use whimbrel::proto::run_state::RunState;
use whimbrel::proto::status::MigrationStatus;

use super::parameters;
use crate::arguments::NoArguments;
use crate::command::{Command, Runs};
use crate::server::Vm;

pub(super) fn commands() -> Vec<Command> {
    vec![Command::new("query-qmp-schema", Runs::ReadOnly, |_: &Vm, _: NoArguments| Ok(schema()))]
}

/// The built-in types and their JSON types.
const BUILT_IN: [(&str, &str); 6] = [
    ("str", "string"),
    ("int", "int"),
    ("number", "number"),
    ("bool", "boolean"),
    ("null", "null"),
    ("any", "value"),
];

/// No members: the arguments of a command that takes none, the answer of one that gives none.
const EMPTY: &str = "Empty";

const ENTITIES: &str = "
command qmp_capabilities ?enable:[QMPCapability]
command query-version -> VersionInfo
command query-commands -> [CommandInfo]
command query-qmp-schema -> [SchemaInfo]
command query-name -> NameInfo
command query-uuid -> UuidInfo
command query-cpus-fast -> [CpuInfoFast]
command query-status -> StatusInfo
command stop
command cont
command system_reset
command quit
command pmemsave val:int size:int filename:str
command getfd fdname:str
command closefd fdname:str
command add-fd ?fdset-id:int ?opaque:str -> AddfdInfo
command remove-fd fdset-id:int ?fd:int
command query-fdsets -> [FdsetInfo]
command migrate ?uri:str ?channels:[MigrationChannel] ?detach:bool ?resume:bool
command migrate_cancel
command migrate-continue state:MigrationStatus
command migrate-incoming ?uri:str ?channels:[MigrationChannel] ?exit-on-error:bool
command query-migrate -> MigrationInfo
command query-migrationthreads -> [MigrationThreadInfo]
command migrate-set-capabilities capabilities:[MigrationCapabilityStatus]
command query-migrate-capabilities -> [MigrationCapabilityStatus]
command query-migrate-parameters -> MigrationParameters

event STOP
event RESUME
event RESET guest:bool reason:ShutdownCause
event SHUTDOWN guest:bool reason:ShutdownCause
event MIGRATION status:MigrationStatus
event MIGRATION_PASS pass:int

enum QMPCapability oob
enum ShutdownCause host-qmp-quit host-qmp-system-reset guest-reset guest-shutdown
enum MigrationChannelType main
enum MigrationAddressType socket exec file
enum SocketAddressType inet unix vsock fd
enum SchemaMetaType builtin enum array object alternate command event
enum JSONType string number int boolean null object array value

object VersionInfo qemu:VersionTriple package:str
object VersionTriple major:int minor:int micro:int
object CommandInfo name:str
object NameInfo ?name:str
object UuidInfo UUID:str
object CpuInfoFast cpu-index:int qom-path:str thread-id:int props:CpuInstanceProperties target:str
object CpuInstanceProperties socket-id:int core-id:int thread-id:int
object StatusInfo running:bool status:RunState
object AddfdInfo fdset-id:int fd:int
object FdsetInfo fdset-id:int fds:[FdsetFdInfo]
object FdsetFdInfo fd:int ?opaque:str
object MigrationThreadInfo name:str thread-id:int
object MigrationCapabilityStatus capability:MigrationCapability state:bool
object MigrationChannel channel-type:MigrationChannelType addr:MigrationAddress
object MigrationAddress transport:MigrationAddressType by transport socket:SocketAddress exec:ExecAddress file:FileAddress
object SocketAddress type:SocketAddressType by type inet:InetAddress unix:UnixAddress vsock:VsockAddress fd:FdAddress
object InetAddress host:str port:str ?numeric:bool ?to:int ?ipv4:bool ?ipv6:bool ?keep-alive:bool ?mptcp:bool
object UnixAddress path:str ?abstract:bool ?tight:bool
object VsockAddress cid:str port:str
object FdAddress str:str
object ExecAddress args:[str]
object FileAddress filename:str offset:int
object MigrationInfo ?status:MigrationStatus ?ram:MigrationStats ?total-time:int ?setup-time:int ?expected-downtime:int ?downtime:int ?error-desc:str ?blocked-reasons:[str] ?socket-address:[SocketAddress] ?whimbrel:WhimbrelInfo
object MigrationStats transferred:int remaining:int total:int duplicate:int normal:int normal-bytes:int dirty-pages-rate:int mbps:number dirty-sync-count:int dirty-sync-missed-zero-copy:int postcopy-requests:int page-size:int multifd-bytes:int pages-per-second:int precopy-bytes:int downtime-bytes:int postcopy-bytes:int
object WhimbrelInfo fenced:bool overruns:int extra-rounds:int ?predicted-downtime-us:int ?pause-us:WhimbrelPause
object WhimbrelPause stop:int user:int ram:int devices:int confirm:int commit:int shut:int
object BitmapMigrationNodeAlias node-name:str alias:str bitmaps:[BitmapMigrationBitmapAlias]
object BitmapMigrationBitmapAlias name:str alias:str ?transform:BitmapMigrationBitmapAliasTransform
object BitmapMigrationBitmapAliasTransform ?persistent:bool
object SchemaInfo name:str meta-type:SchemaMetaType by meta-type builtin:SchemaBuiltin enum:SchemaEnum array:SchemaArray object:SchemaObject alternate:SchemaAlternate command:SchemaCommand event:SchemaEvent
object SchemaBuiltin json-type:JSONType
object SchemaEnum members:[SchemaEnumMember] values:[str]
object SchemaEnumMember name:str
object SchemaArray element-type:str
object SchemaObject members:[SchemaObjectMember] ?tag:str ?variants:[SchemaVariant]
object SchemaObjectMember name:str type:str ?default:any
object SchemaVariant case:str type:str
object SchemaAlternate members:[SchemaAlternateMember]
object SchemaAlternateMember type:str
object SchemaCommand arg-type:str ret-type:str ?allow-oob:bool
object SchemaEvent arg-type:str

alternate StrOrNull str null
";

/// The parameters whose type their default does not tell.
const PARAMETER_TYPES: [(&str, &str); 4] = [
    ("multifd-compression", "MultiFDCompression"),
    ("zero-page-detection", "ZeroPageDetection"),
    ("mode", "MigMode"),
    ("block-bitmap-mapping", "[BitmapMigrationNodeAlias]"),
];

/// The answer: every entity, then every type that one of them names.
fn schema() -> Value {
    let mut schema = Schema::default();
    ENTITIES.lines().filter(|line| !line.is_empty()).for_each(|line| schema.line(line));
    schema.line(&format!("enum RunState {}", names(&RunState::ALL.map(RunState::name))));
    schema.line(&format!("enum MigrationStatus {}", names(&MigrationStatus::ALL.map(MigrationStatus::name))));
    let capabilities: Vec<_> = Capability::ALL.iter().map(|capability| capability.name()).collect();
    schema.line(&format!("enum MigrationCapability {}", names(&capabilities)));
    parameters::enumerations(|name, values| schema.line(&format!("enum {name} {}", names(values))));
    schema.line(&format!("command migrate-set-parameters {}", parameter_members(true)));
    schema.line(&format!("object MigrationParameters {}", parameter_members(false)));
    schema.finish()
}

fn names(names: &[&str]) -> String {
    names.join(" ")
}

/// Every parameter as an optional member. The texts among them may be set to null.
fn parameter_members(set: bool) -> String {
    let defaults = parameters::to_json(&Parameters::default());
    let members = defaults.as_object().into_iter().flatten().map(|(name, value)| {
        let told = PARAMETER_TYPES.iter().find(|(known, _)| known == name).map(|(_, ty)| *ty);
        let ty = told.unwrap_or(match value {
            Value::Bool(_) => "bool",
            Value::String(_) if set => "StrOrNull",
            Value::String(_) => "str",
            _ => "int",
        });
        format!("?{name}:{ty}")
    });
    members
        .chain(["?block-bitmap-mapping:[BitmapMigrationNodeAlias]".to_owned()])
        .collect::<Vec<_>>()
        .join(" ")
}

/// Entities so far, and the types they name.
#[derive(Default)]
struct Schema {
    entities: Vec<Value>,
    arrays: BTreeSet<String>,
}

impl Schema {
    fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let words: Vec<&str> = words.collect();
        let entity = match kind {
            "command" => {
                let (members, answer) = split(&words, "->");
                let answer = answer.first().map_or(EMPTY.to_owned(), |ty| self.type_of(ty));
                json!({"arg-type": self.arguments(name, members), "ret-type": answer, "allow-oob": false})
            }
            "event" => json!({"arg-type": self.arguments(name, &words)}),
            "enum" => {
                let members: Vec<_> = words.iter().map(|name| json!({ "name": name })).collect();
                json!({"members": members, "values": words})
            }
            "alternate" => {
                let members: Vec<_> = words.iter().map(|ty| json!({"type": self.type_of(ty)})).collect();
                json!({ "members": members })
            }
            _ => self.object(&words),
        };
        self.add(name, kind, entity);
    }

    /// The name of the type of a command's or an event's own members.
    fn arguments(&mut self, of: &str, members: &[&str]) -> String {
        if members.is_empty() {
            return EMPTY.to_owned();
        }
        let name = format!("{of}-arg");
        let entity = self.object(members);
        self.add(&name, "object", entity);
        name
    }

    fn object(&mut self, words: &[&str]) -> Value {
        let (members, variants) = split(words, "by");
        let member = |word: &&str| {
            let optional = word.starts_with('?');
            let (name, ty) = word.trim_start_matches('?').split_once(':').unwrap_or_default();
            let mut member = Map::from_iter([
                ("name".to_owned(), json!(name)),
                ("type".to_owned(), json!(self.type_of(ty))),
            ]);
            if optional {
                member.insert("default".into(), Value::Null);
            }
            Value::Object(member)
        };
        let mut object = json!({"members": members.iter().map(member).collect::<Vec<_>>()});
        if let [tag, cases @ ..] = variants {
            let case = |word: &&str| {
                let (case, ty) = word.split_once(':').unwrap_or_default();
                json!({"case": case, "type": ty})
            };
            object["tag"] = json!(tag);
            object["variants"] = cases.iter().map(case).collect();
        }
        object
    }

    /// A type's name; an array is an entity of its own.
    fn type_of(&mut self, ty: &str) -> String {
        if ty.starts_with('[') {
            self.arrays.insert(ty.to_owned());
        }
        ty.to_owned()
    }

    fn add(&mut self, name: &str, kind: &str, mut entity: Value) {
        entity["name"] = json!(name);
        entity["meta-type"] = json!(kind);
        self.entities.push(entity);
    }

    fn finish(mut self) -> Value {
        self.add(EMPTY, "object", json!({"members": []}));
        for array in std::mem::take(&mut self.arrays) {
            let element = array.trim_matches(['[', ']']).to_owned();
            self.add(&array, "array", json!({ "element-type": element }));
        }
        for (name, json_type) in BUILT_IN {
            self.add(name, "builtin", json!({ "json-type": json_type }));
        }
        Value::Array(self.entities)
    }
}

/// The words before and after a mark.
fn split<'w, 't>(words: &'w [&'t str], mark: &str) -> (&'w [&'t str], &'w [&'t str]) {
    match words.iter().position(|word| *word == mark) {
        Some(at) => (&words[..at], &words[at + 1..]),
        None => (words, &[]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names_of(schema: &Value, kind: &str) -> BTreeSet<String> {
        let entities = schema.as_array().unwrap().iter();
        entities
            .filter(|entity| entity["meta-type"] == kind)
            .map(|entity| entity["name"].as_str().unwrap().into())
            .collect()
    }

    #[test]
    fn every_command_of_the_table_is_described_and_no_other() {
        let mut table: BTreeSet<String> = crate::commands::table().names().map(str::to_owned).collect();
        table.insert("qmp_capabilities".into());
        assert_eq!(names_of(&schema(), "command"), table);
    }

    #[test]
    fn every_type_that_is_named_exists_once() {
        let schema = schema();
        let entities = schema.as_array().unwrap();
        let names: BTreeSet<&str> = entities.iter().map(|entity| entity["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), entities.len());
        let mut named = Vec::new();
        for entity in entities {
            named.extend(["arg-type", "ret-type", "element-type"].map(|key| entity[key].as_str()));
            for list in ["members", "variants"] {
                let members = entity[list].as_array().into_iter().flatten();
                named.extend(members.map(|member| member["type"].as_str()));
            }
        }
        for name in named.into_iter().flatten() {
            assert!(names.contains(name), "{name} is named and not described");
        }
    }

    #[test]
    fn an_optional_member_has_a_default_and_a_union_its_cases() {
        let schema = schema();
        let find = |name: &str| {
            schema.as_array().unwrap().iter().find(|entity| entity["name"] == name).unwrap().clone()
        };
        assert_eq!(find("migrate")["arg-type"], "migrate-arg");
        assert_eq!(find("migrate-arg")["members"][0], json!({"name": "uri", "type": "str", "default": null}));
        let continues = find("migrate-continue-arg");
        assert_eq!(continues["members"], json!([{"name": "state", "type": "MigrationStatus"}]));
        assert_eq!(find("SocketAddress")["tag"], "type");
        assert_eq!(find("SocketAddress")["variants"][0], json!({"case": "inet", "type": "InetAddress"}));
        assert_eq!(find("stop")["arg-type"], EMPTY);
    }
}
