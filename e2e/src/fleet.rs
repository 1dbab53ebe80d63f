//! Fairlead on a world: installed, asked and removed by the commands that a user would paste.
//!
//! Knows nothing of hub and agent but their command line: whoever can paste a line can do what
//! this module does. The harness's kubelets run what the commands install.

pub mod dump;
pub mod impostor;
pub mod program;
pub mod shop;
pub mod tracing;
pub mod trial;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_model::{
    Reason,
    health::MemberState,
    history::{Entry, HistoryView},
    view::{Explanation, GatewayView, MemberView, RouteView, ServiceView, StatusView},
};
use futures::future::try_join_all;
use serde_json::Value;

use self::{
    dump::Dump,
    program::{Desk, Ran, build_programs},
};
use crate::{
    cluster::Cluster,
    object::ObjectKey,
    wait::{self, Look},
    world::World,
};

/// The hub's port for agents.
pub const HUB_PORT: u16 = 8443;
/// The port of every gateway's public listener in these worlds.
pub const PUBLIC_PORT: u16 = 80;
/// How long a fleet may take to agree with its hub on a busy machine.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(120);
/// Longer than stabilisation and every step of a ramp, by their defaults.
const RAMP_LIMIT: Duration = Duration::from_secs(240);

/// The plans that members hold, by (epoch, counter); without those that hold none.
pub fn plans_held(status: &StatusView) -> BTreeMap<String, (u64, u64)> {
    let number = |text: &str| {
        let (epoch, counter) = text.split_once('.')?;
        Some((epoch.parse().ok()?, counter.parse().ok()?))
    };
    let held = status.members.iter();
    held.filter_map(|view| Some((view.member.to_string(), number(view.plan_applied.as_deref()?)?)))
        .collect()
}

/// A world with a hub of Fairlead in it.
pub struct Fleet<'w> {
    world: &'w World,
    hub: &'w Arc<Cluster>,
    desk: Desk,
}

impl<'w> Fleet<'w> {
    /// A fleet whose hub is there already, or that has none yet.
    pub fn new(world: &'w World) -> Result<Self> {
        Ok(Self { world, hub: world.hub(), desk: Desk::new(world.folder())? })
    }

    /// The same, once what is to be installed is built.
    pub async fn built(world: &'w World) -> Result<Self> {
        tokio::task::spawn_blocking(build_programs).await??;
        Self::new(world)
    }

    /// A fleet whose hub lives in a member; the world's own hub cluster stays idle.
    pub fn within(world: &'w World, member: &str) -> Result<Self> {
        Ok(Self { world, hub: world.member(member)?, desk: Desk::new(world.folder())? })
    }

    /// The cluster of the hub.
    pub fn hub(&self) -> &'w Arc<Cluster> {
        self.hub
    }

    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Where agents reach the hub.
    pub async fn hub_url(&self) -> Result<String> {
        // Where the hub's Pod listens; in a cluster for hubs only that is the cluster's own address.
        let address = self.hub.local()?.pods.address;
        Ok(format!("https://{address}:{HUB_PORT}"))
    }

    /// Installs the hub.
    pub async fn init(&self) -> Result<Ran> {
        self.init_with("").await
    }

    /// Installs the hub with more flags.
    pub async fn init_with(&self, flags: &str) -> Result<Ran> {
        let line = format!("fairlead init --advertise {} {flags}", self.hub_url().await?);
        let ran = self.at_hub(&line).await?;
        ran.clone().expect_success()?;
        Ok(ran)
    }

    /// The line that joins a member, as `fairlead token create` prints it.
    pub async fn join_line(&self, member: &str) -> Result<String> {
        let printed = self.at_hub(&format!("fairlead token create --member {member}")).await?;
        let printed = printed.expect_success()?;
        let line = printed.lines().find(|line| line.starts_with("fairlead join "));
        Ok(line.context("`fairlead token create` printed no line to paste")?.to_owned())
    }

    /// Joins one member by its printed line, word for word.
    pub async fn join(&self, member: &str) -> Result<Ran> {
        let line = self.join_line(member).await?;
        let ran = self.at(member, &line).await?;
        ran.clone().expect_success().with_context(|| format!("joining {member}"))?;
        Ok(ran)
    }

    /// Joins one member with more flags behind its printed line.
    pub async fn join_with(&self, member: &str, flags: &str) -> Result<Ran> {
        let line = format!("{} {flags}", self.join_line(member).await?);
        let ran = self.at(member, &line).await?;
        ran.clone().expect_success().with_context(|| format!("joining {member}"))?;
        Ok(ran)
    }

    /// Joins all members of the world, side by side.
    pub async fn join_all(&self) -> Result<Vec<Ran>> {
        try_join_all(self.world.members().map(|member| self.join(member.name()))).await
    }

    /// Runs a line with the hub's kubeconfig.
    pub async fn at_hub(&self, line: &str) -> Result<Ran> {
        self.desk.paste(self.hub.kubeconfig(), line).await
    }

    /// Runs a line with a member's kubeconfig.
    pub async fn at(&self, member: &str, line: &str) -> Result<Ran> {
        self.desk.paste(self.world.member(member)?.kubeconfig(), line).await
    }

    pub async fn status(&self) -> Result<StatusView> {
        self.ask("fairlead status -o json").await
    }

    pub async fn routes(&self) -> Result<Vec<RouteView>> {
        self.ask("fairlead get routes -o json").await
    }

    pub async fn services(&self) -> Result<Vec<ServiceView>> {
        self.ask("fairlead get services -o json").await
    }

    pub async fn gateways(&self) -> Result<Vec<GatewayView>> {
        self.ask("fairlead get gateways -o json").await
    }

    /// Why traffic of a route (`namespace/name`) goes where it goes.
    pub async fn explain(&self, route: &str) -> Result<Explanation> {
        self.ask(&format!("fairlead explain {route} -o json")).await
    }

    /// What was decided of a route (`namespace/name`) before, the newest first.
    pub async fn history(&self, route: &str) -> Result<Vec<Entry>> {
        let line = format!("fairlead history {route} --limit 1000 -o json");
        Ok(self.ask::<HistoryView>(&line).await?.entries)
    }

    /// The newest change of a route, once nothing more is entered.
    pub async fn newest_change(&self, route: &str) -> Result<Entry> {
        let last = Mutex::new(None);
        wait::until("the history to stand still", SETTLE_LIMIT, || async {
            let newest = self.history(route).await?.into_iter().next().context("no history")?;
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let before = last.replace(newest.clone());
            let is_still = before.as_ref() == Some(&newest);
            Ok(if is_still { Look::Done(newest) } else { Look::Not("it goes on".into()) })
        })
        .await
    }

    /// Runs a line with the hub's kubeconfig that prints JSON.
    pub async fn ask<T: serde::de::DeserializeOwned>(&self, line: &str) -> Result<T> {
        self.desk.ask(self.hub.kubeconfig(), line).await
    }

    /// What the hub says of one member.
    pub async fn member_view(&self, member: &str) -> Result<MemberView> {
        let status = self.status().await?;
        let found = status.members.into_iter().find(|view| view.member.as_str() == member);
        found.with_context(|| format!("the hub has no member {member}"))
    }

    /// Waits until the hub plans, every member is Up, and every plan is applied as it is.
    pub async fn wait_settled(&self) -> Result<Duration> {
        self.wait_settled_with(self.world.members().count()).await
    }

    /// The same with so many members.
    pub async fn wait_settled_with(&self, members: usize) -> Result<Duration> {
        self.wait_members("the fleet to settle", members).await
    }

    /// Waits until no member's share of a route is on its way up any more, in any entry.
    pub async fn wait_ramped(&self, route: &str) -> Result<()> {
        wait::until("the last step of the ramp", RAMP_LIMIT, || async {
            let explanation = self.explain(route).await?;
            let rules = explanation.entries.values().flat_map(|entry| &entry.rules);
            let shares = rules.flat_map(|rule| &rule.backends).flat_map(|backend| &backend.members);
            let ramping = shares.filter(|share| {
                let returning = matches!(share.reason, Reason::Ramping | Reason::Recovering);
                returning || share.share_now.is_some_and(|now| now != share.share)
            });
            Ok(match ramping.count() {
                0 => Look::Done(()),
                many => Look::Not(format!("{many} shares are on their way")),
            })
        })
        .await
    }

    /// Takes a member out, and tells the hub.
    pub async fn leave(&self, member: &str) -> Result<Ran> {
        let hub = self.hub.kubeconfig().display();
        let ran = self.at(member, &format!("fairlead leave --yes --hub-kubeconfig {hub}")).await?;
        ran.clone().expect_success()?;
        Ok(ran)
    }

    /// Deletes a member from the hub alone, whatever its cluster thinks of that.
    pub async fn forget_member(&self, member: &str) -> Result<()> {
        let key = ObjectKey::new(fairlead_crds::keys::API_VERSION, "MemberCluster", "", member);
        let objects = self.hub.objects();
        objects.delete(&key).await?;
        objects.wait_gone(&key, SETTLE_LIMIT).await
    }

    /// Takes everything of Fairlead out of the world: members leave whatever state they are in,
    /// then the hub's own objects go, as `kubectl delete` by label does.
    pub async fn uninstall(&self) -> Result<()> {
        let hub = self.hub;
        let kubeconfig = hub.kubeconfig().display();
        let line = format!("fairlead leave --yes --force --hub-kubeconfig {kubeconfig}");
        for member in self.world.members() {
            self.at(member.name(), &line).await?.expect_success()?;
        }
        let ours = Dump::take(hub).await?.ours();
        let is = |kind: &'static str| move |object: &&Value| object["kind"] == kind;
        for object in ours.objects().filter(is("MemberCluster")) {
            // The hub must still be there to let go of them.
            hub.objects().delete(&ObjectKey::of(object)?).await?;
            hub.objects().wait_gone(&ObjectKey::of(object)?, SETTLE_LIMIT).await?;
        }
        for object in ours.objects().filter(|object| object["kind"] != "Namespace") {
            // Pods, ReplicaSets and slices go with their owners.
            if object["metadata"]["ownerReferences"].is_null() {
                hub.objects().delete(&ObjectKey::of(object)?).await?;
            }
        }
        for object in ours.objects().filter(is("Namespace")) {
            hub.objects().delete(&ObjectKey::of(object)?).await?;
            hub.objects().wait_gone(&ObjectKey::of(object)?, SETTLE_LIMIT).await?;
        }
        Ok(())
    }

    async fn wait_members(&self, what: &str, expected: usize) -> Result<Duration> {
        let start = Instant::now();
        wait::until(what, SETTLE_LIMIT, || async {
            let status = self.status().await?;
            Ok(match unsettled(&status, expected) {
                Some(why) => Look::Not(why),
                None => Look::Done(()),
            })
        })
        .await?;
        Ok(start.elapsed())
    }
}

/// What keeps a fleet from being settled.
fn unsettled(status: &StatusView, members: usize) -> Option<String> {
    if let Some(note) = status.held.first() {
        return Some(format!("the hub does not plan: {note}"));
    }
    if status.members.len() != members {
        return Some(format!("the hub has {} of {members} members", status.members.len()));
    }
    status.members.iter().find_map(|member| {
        let name = &member.member;
        if member.state != MemberState::Up {
            return Some(format!("{name} is {:?}", member.state));
        }
        if let Some((object, exception)) = member.exceptions.iter().next() {
            return Some(format!("{name} could not apply {object}: {exception:?}"));
        }
        match (&member.plan_wanted, &member.plan_applied) {
            (None, _) => Some(format!("{name} has no plan yet")),
            (wanted, applied) if wanted != applied => {
                Some(format!("{name} applied {applied:?} of {wanted:?}"))
            }
            _ => None,
        }
    })
}

/// Where requests enter a member.
pub async fn entry(cluster: &Cluster) -> Result<SocketAddr> {
    Ok(SocketAddr::new(cluster.gateway_addr().await?.into(), PUBLIC_PORT))
}
