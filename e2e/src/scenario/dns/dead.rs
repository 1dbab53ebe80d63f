//! c: a member dies. When do the others stop naming it, and when is it named again?

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::Stage;
use crate::{
    ask::{Question, Resolver},
    fleet::shop,
    report::{Facts, Finding, figures, milliseconds, seconds},
    scenario::spine::{EAST, SOUTH, WEST},
    wait::{self, Look},
};

const VICTIM: &str = EAST;
const OTHERS: [&str; 2] = [WEST, SOUTH];
const ALL: [&str; 3] = [EAST, WEST, SOUTH];
/// Agents need two probes that nobody answers.
const GONE_MAX: Duration = Duration::from_secs(3);
/// Starting a whole cluster takes most of this.
const RETURN_LIMIT: Duration = Duration::from_secs(180);

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) -> Result<()> {
    stage.declare(json!({"strategy": "All"})).await?;
    stage.wait_named(&ALL, &Question::address(shop::HOST)?, &ALL).await?;
    stage.fleet.wait_settled().await?;
    facts.look("c1", "a member dies: the others stop naming it", killed(stage)).await;
    facts.look("c2", "it returns and is named again", returned(stage)).await;
    stage.fleet.world().fault().kill_hub().await?;
    facts.look("c3", "the hub is gone, then a member: the same", killed(stage)).await;
    stage.fleet.world().fault().restore_hub().await?;
    facts.look("c4", "both return, and all are named again", returned(stage)).await;
    Ok(())
}

async fn killed(stage: &Stage<'_>) -> Result<Finding> {
    let shop = Question::address(shop::HOST)?;
    let world = stage.fleet.world();
    stage.wait_named(&OTHERS, &shop, &ALL).await?;
    world.fault().isolate(VICTIM)?;
    let start = Instant::now();
    let fault = world.fault();
    let died = fault.kill_member(VICTIM);
    let watched = async {
        let mut gone = Vec::new();
        for member in OTHERS {
            gone.push((member, gone_after(stage, member, &shop, start)));
        }
        let [(_, west), (_, south)] =
            <[_; 2]>::try_from(gone).map_err(|_| anyhow::anyhow!("two members are watched"))?;
        tokio::try_join!(west, south)
    };
    let (died, watched) = tokio::join!(died, watched);
    died?;
    let (west, south) = watched?;
    let holds = west.max(south) <= GONE_MAX;
    Ok(Finding::new(
        holds,
        figures([
            ("gone_at_west_ms", json!(milliseconds(west))),
            ("gone_at_south_ms", json!(milliseconds(south))),
        ]),
    ))
}

/// When an agent stopped naming the victim, with others still named.
async fn gone_after(
    stage: &Stage<'_>,
    member: &str,
    question: &Question,
    start: Instant,
) -> Result<Duration> {
    let wanted = stage.addresses_of(&OTHERS);
    let mut resolver = Resolver::to(stage.server(member)).await?;
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    let watch = async {
        loop {
            beat.tick().await;
            if resolver.addresses(question).await? == wanted {
                return anyhow::Ok(start.elapsed());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), watch).await?
}

async fn returned(stage: &Stage<'_>) -> Result<Finding> {
    let world = stage.fleet.world();
    let shop = Question::address(shop::HOST)?;
    let start = Instant::now();
    world.fault().rejoin(VICTIM)?;
    world.fault().restore_member(VICTIM).await?;
    let wanted = stage.addresses_of(&ALL);
    for member in ALL {
        wait::until("all members to be named", RETURN_LIMIT, || async {
            let found = Resolver::to(stage.server(member)).await?.addresses(&shop).await?;
            Ok(match found == wanted {
                true => Look::Done(()),
                false => Look::Not(format!("{member} names {found:?}")),
            })
        })
        .await?;
    }
    let took = seconds(start.elapsed());
    stage.fleet.wait_settled().await?;
    Ok(Finding::new(true, figures([("returned_after_s", json!(took))])))
}
