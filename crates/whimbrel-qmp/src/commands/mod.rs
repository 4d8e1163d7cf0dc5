//! Every command, a file a family.

mod capabilities;
mod channels;
mod descriptors;
mod introspection;
mod memory;
mod migration;
mod parameters;
mod query_migrate;
mod run_state;
mod schema;

pub(crate) use introspection::version as query_version;

use crate::command::Table;

/// All of them.
pub(crate) fn table() -> Table {
    let families = [
        run_state::commands(),
        migration::commands(),
        capabilities::commands(),
        parameters::commands(),
        introspection::commands(),
        memory::commands(),
        descriptors::commands(),
        schema::commands(),
    ];
    Table::new(families.into_iter().flatten())
}
