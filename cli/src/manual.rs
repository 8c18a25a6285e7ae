//! Shell completions and the man page, generated from the definitions of the arguments.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{failure::Failure, output};

/// Print completions for a shell: `api-key completions bash`
///
///   bash: api-key completions bash > ~/.local/share/bash-completion/completions/api-key
///   zsh:  api-key completions zsh > "${fpath[1]}/_api-key"
///   fish: api-key completions fish > ~/.config/fish/completions/api-key.fish
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(
    completions: &Completions,
    mut command: Command,
) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut command, "api-key", &mut script);
    print(&script)
}

/// Prints one page: the program, and a section for each command.
pub(crate) fn man(mut command: Command) -> Result<ExitCode, Failure> {
    command.build();
    let mut page = Vec::new();
    render(&command, &mut page).map_err(|error| output::unwritten(&error))?;
    print(&page)
}

fn render(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    Man::new(command.clone()).render(page)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        writeln!(page, ".SH \"{}\"", sub.get_bin_name().unwrap_or_default().to_uppercase())?;
        let man = Man::new(sub.clone());
        man.render_description_section(page)?;
        man.render_synopsis_section(page)?;
        man.render_options_section(page)?;
    }
    Ok(())
}

fn print(text: &[u8]) -> Result<ExitCode, Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text)
        .and_then(|()| stdout.flush())
        .map_err(|error| output::unwritten(&error))?;
    Ok(ExitCode::SUCCESS)
}
