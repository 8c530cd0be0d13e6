//! ipamd: reads the settings, starts the log, runs the daemon; or installs the CNI plugin.

use anyhow::Context as _;
use ipamd::{
    install::{self, InstallError},
    memory,
    settings::{LogFormat, Settings, SettingsError},
};
use std::{collections::BTreeMap, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == install::COMMAND) {
        return install_cni();
    }
    memory::share_arenas();
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let settings = match Settings::read(std::env::args_os(), &environment) {
        Ok(settings) => settings,
        Err(SettingsError::Usage(usage)) => usage.exit(),
        Err(error) => {
            eprintln!("ipamd: {error}");
            return ExitCode::from(2);
        }
    };
    match start(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("ipamd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn install_cni() -> ExitCode {
    match install::run(std::env::args_os().skip(1), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(InstallError::Usage(usage)) => usage.exit(),
        Err(error) => {
            eprintln!("ipamd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log_level)
        .with_context(|| format!("log_level {:?} is no filter", settings.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Calls block on the kernel's one lock for links; more threads would only wait there.
        .max_blocking_threads(64)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("the async runtime cannot be started")?;
    runtime.block_on(ipamd::daemon::run(settings))
}
