//! x
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {}
pub(crate) fn run(_: &DemoArgs) -> Result<(), crate::Failed> {
    Ok(())
}
