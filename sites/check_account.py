"""Checks of who pays for a job: an account of Slurm's, a project of Grid Engine's, a group of HTCondor's.

Each batch system is asked for its own list, where it has one; nothing is submitted.
"""

from __future__ import annotations

import getpass
import shutil
from typing import TYPE_CHECKING

from sites.check_batch import COMMANDS, instead, pool_of, server_of
from sites.scene import Check

if TYPE_CHECKING:
    from sites.scene import Scene


def account(scene: Scene) -> list[Check]:
    """Whether the account may be used, where the batch system has a list of them that can be asked."""
    asked = {"condor": _group, "sge": _project, "slurm": _association}
    scheduler = str(scene.site.scheduler)
    if scene.quick or scheduler not in asked or shutil.which(COMMANDS[scheduler][0]) is None:
        return []
    return asked[scheduler](scene)


def _association(scene: Scene) -> list[Check]:
    wanted = scene.site.job.account
    if wanted is None:
        return []
    who = ["user=" + getpass.getuser(), "format=account"]
    answer = scene.ask(["sacctmgr", "-n", "-P", "show", "assoc", *who], scene.patience)
    known = sorted({line.strip() for line in answer.text.splitlines() if line.strip()})
    if not answer.good or not known:
        return [Check("account", None, f"whether the account {wanted} may be used cannot be seen from here")]
    if wanted in known:
        return [Check("account", True, f"the account {wanted} is yours")]
    return [
        Check("account", False, f"the account {wanted} is not yours", instead("--account", wanted, known))
    ]


def _project(scene: Scene) -> list[Check]:
    """Grid Engine's account is a project; the administrators have a list of them."""
    wanted, own = scene.site.job.account, scene.site.job.account_directive
    if wanted is None or own is not None:
        return []
    answer = scene.ask(["qconf", "-sprjl"], scene.patience)
    known = sorted(answer.text.split())
    if not answer.good and "no project list" not in answer.complaint:
        return [Check("account", None, f"whether there is a project {wanted} cannot be seen from here")]
    if wanted in known:
        return [Check("account", True, f"there is a project {wanted}")]
    mend = instead("--account", wanted, known) if known else "without --account: no project is defined here"
    return [Check("account", False, f"there is no project {wanted!r}", mend)]


def _group(scene: Scene) -> list[Check]:
    """HTCondor takes jobs of any accounting group, and gives one that it does not know no share."""
    wanted = _accounting_group(scene)
    if not wanted:
        return []
    pool = pool_of(server_of(scene.site.job.submit_options))
    answer = scene.ask(["condor_config_val", *pool, "-negotiator", "GROUP_NAMES"], scene.patience)
    text = answer.text.strip()
    known = [] if not answer.good or text.startswith("Not defined") else text.replace(",", " ").split()
    if not known:
        return [Check("account", None, f"whether {wanted} is an accounting group cannot be seen from here")]
    # "group.user" is that user's part of the group, and letters are the same small or large.
    parts = wanted.lower().split(".")
    names = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    if names & {one.lower() for one in known}:
        return [Check("account", True, f"the accounting group {wanted} is known")]
    says = f"the pool knows no accounting group {wanted}: such jobs wait behind all others"
    return [Check("account", None, says, instead("--account", wanted, sorted(known)))]


def _accounting_group(scene: Scene) -> str:
    """As the job says it, in whichever way."""
    job = scene.site.job
    names = ("accounting_group", "+accountinggroup", "my.accountinggroup", "+acctgroup", "my.acctgroup")
    if job.account and (job.account_directive or names[0]).lower() in names:
        return job.account
    given = (value for key, value in scene.site.directives.items() if key.lower() in names)
    return str(next(given, "")).strip('"')
