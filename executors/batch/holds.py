"""Why HTCondor holds a job, in plain words with what mends it: a table of its codes, and sites' own words.

Nothing here runs a command or knows a crew.
"""

from __future__ import annotations

import re

from executors.batch.reasons import MEMORY, Meaning

# HTCondor: JobStatus 5, HoldReasonCode; every code of its manual, "Job ClassAd Attributes".
HELD_SPOOLING = 16  # input files are on their way to the schedd: no trouble
_OURS = "a fault inside HTCondor: if it comes again, the site's support should know"
_LOGS = "the run's folder must be writable, and of a file system that the schedd sees: --outputdir"
_CLOUD = Meaning("a cloud service refused it", "no site of this program uses one: look at its grid_resource")
CONDOR_HOLDS: dict[int, Meaning] = {
    0: Meaning("held, and HTCondor names no reason"),
    1: Meaning("held by its owner", "", "removed"),
    2: Meaning("the gateway to a grid reported an error", "look at its grid_resource"),
    3: Meaning("held by a rule of the job or site"),
    4: Meaning("its credential is not valid", "renew it: voms-proxy-init, or kinit"),
    5: Meaning("a rule of the job has no value", "look at the profile's directives, or --directive"),
    6: Meaning("the job could not be started on the node", "the container image or the script is not there"),
    7: Meaning("its output cannot be opened", _LOGS),
    8: Meaning("its standard input cannot be opened"),
    9: Meaning("its output cannot be written while it runs", _LOGS),
    10: Meaning("its standard input cannot be read while it runs"),
    11: Meaning("the transfer of its files broke off", _OURS, "node"),
    12: Meaning("its output could not be brought back", "quota and space where the logs lie"),
    13: Meaning("its input files could not be sent", "they must stay there until the job has started"),
    14: Meaning("its folder cannot be entered", "submit from a folder that this site's nodes see"),
    15: Meaning("submitted on hold", "leave hold out of the directives"),
    HELD_SPOOLING: Meaning("its input files are on their way"),
    17: Meaning("the job does not fit this version of HTCondor", _OURS),
    18: Meaning("the transfer of its files was not begun", _OURS, "node"),
    19: Meaning("a preparation of the node failed", "its container image, or the site's support", "node"),
    20: Meaning("the time at which it was to start has passed", "look at deferral_time among the directives"),
    21: Meaning("put on hold by the node"),
    22: Meaning("its event log cannot be opened", _LOGS),
    23: Meaning("your account cannot be used on the node", "ask the site's support", "node"),
    24: Meaning("no part of HTCondor here can run such a job", "universe among the directives"),
    25: Meaning("its times are no times of cron", "look at the cron_ directives"),
    26: Meaning("held by a rule of the site"),
    27: Meaning("a rule of the site has no value for it", "ask the site's support"),
    **dict.fromkeys(range(28, 32), Meaning("its folder on the node could not be handed over", _OURS, "node")),
    32: Meaning("its files are larger than the site sends", "fewer or smaller files to transfer"),
    33: Meaning("it was not allowed to bring back output that large", "what jobs print is all that comes"),
    34: Meaning("it used more memory than requested", MEMORY, "memory"),
    35: Meaning("its container image cannot be used", "--image"),
    36: Meaning("it did not save its state when asked to", "look at the checkpoint_ directives"),
    **dict.fromkeys(range(37, 43), _CLOUD),
    43: Meaning("a program that runs before it failed", "look at the directives"),
    44: Meaning("a program that runs after it failed", "look at the directives"),
    45: Meaning("containers do not start on its node", "--image, or the site's support", "node"),
    46: Meaning("it ran longer than allowed", "--walltime", "walltime"),
    47: Meaning("it ran longer than allowed", "--walltime", "walltime"),
    48: Meaning("a preparation before its start failed", "ask the site's support"),
}
_NO_SPACE = Meaning("no space is left where its files go", "quota -s; df -h where the logs lie")
_NOT_ALLOWED = "the folder must be yours, and the schedd must be allowed to see it"
# By the number that says more: a Unix error for what concerns files, a policy's own else.
CONDOR_SUBCODES: dict[tuple[int, int], Meaning] = {
    (3, 34): Meaning("it used more memory than requested", MEMORY, "memory"),
    (6, 2): Meaning("a program or the image is not on the node", "--worker-python, --image"),
    (6, 8): Meaning("its program is not made for the node's system", "--image, or another --directive"),
    (6, 13): Meaning("its program may not be run on the node", "chmod +x, or a folder without noexec"),
    (12, 2): Meaning("an output file that it should bring back is missing"),
    (12, 13): Meaning("its output may not be written where it should go", _NOT_ALLOWED),
    **dict.fromkeys([(12, 28), (12, 122), (7, 28), (7, 122), (13, 28)], _NO_SPACE),
    **dict.fromkeys([(12, 62), (13, 62)], Meaning("the transfer of its files took too long", "", "node")),
    (13, 2): Meaning("an input file is missing", "the file must be there until the job has started"),
    (13, 13): Meaning("an input file may not be read", _NOT_ALLOWED),
    (21, 101): Meaning("it used more cores than requested", "--cores, or fewer workers a job: -j"),
    (21, 102): Meaning("it used more memory than requested", MEMORY, "memory"),
    (21, 103): Meaning("it ran longer than allowed", "--walltime", "walltime"),
    (21, 104): Meaning("it filled more disk than requested", "--disk"),
    (26, 34): Meaning("it used more memory than requested", MEMORY, "memory"),
}
# Sites use code 3 or 26 with words of their own, and 34 means disk as well as memory.
IN_WORDS: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (re.compile(r"memory", re.IGNORECASE), Meaning("it used more memory than requested", MEMORY, "memory")),
    (
        re.compile(r"wall ?time|run ?time|max ?runtime|time limit|duration|too long", re.IGNORECASE),
        Meaning("it ran longer than allowed", "--walltime", "walltime"),
    ),
    (re.compile(r"\bdisk\b", re.IGNORECASE), Meaning("it filled more disk than requested", "--disk")),
)


def condor_hold(code: int, subcode: int, said: str) -> Meaning:
    """Why HTCondor holds a job."""
    exact = CONDOR_SUBCODES.get((code, subcode))
    if exact is not None:
        return exact
    if code in (3, 21, 26, 34):
        return in_words(said, CONDOR_HOLDS[code])
    return CONDOR_HOLDS.get(code, Meaning(f"held with code {code}/{subcode}"))


def in_words(said: str, otherwise: Meaning) -> Meaning:
    """The meaning of a site's own words."""
    return next((meaning for pattern, meaning in IN_WORDS if pattern.search(said)), otherwise)
