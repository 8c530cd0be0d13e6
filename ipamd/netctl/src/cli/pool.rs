//! Commands about pools.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List pools and their use; of one network also what each node has of them, block by block
    #[command(alias = "list")]
    Ls {
        /// Name of the network
        network: Option<String>,
    },
}
