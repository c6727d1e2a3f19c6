"""Errors: one class per fact, with its fields, its HTTP status and whether trying again can help.

A message is made from the fields, so that it is written once.  They are translated once at each edge: the API turns
them into faults (``status``), the runner into a row (``code``, the class's name, which never changes meaning), the
command line into an exit code.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MigratorError(Exception):
    """Base of all; ``template`` is filled with the fields given."""

    template: ClassVar[str] = "an unexpected error"
    status: ClassVar[int] = 500
    #: True where another attempt of the same cannot succeed.
    final: ClassVar[bool] = False

    def __init__(self, *_args: object, **fields: Any) -> None:
        #: Also what oslo.messaging sends and builds the error from at the other end (with the text as an argument).
        self.kwargs = fields
        super().__init__(self.template.format(**fields))

    @property
    def code(self) -> str:
        """The class's name; one that came over the bus is of a subclass made there."""
        return type(self).__name__.removesuffix("_Remote")

    @property
    def message(self) -> str:
        return self.template.format(**self.kwargs)


# --- bad requests --------------------------------------------------------------------------------------------------


class BadRequest(MigratorError):
    """The caller must change the request."""

    status = 400
    final = True
    template = "{reason}"


class InvalidInput(BadRequest):
    """A field of a body or a query is wrong."""

    template = "Invalid input for {field}: {reason}"


class InvalidVolume(BadRequest):
    """The volume's state forbids what was asked."""

    template = "Invalid volume {volume_id}: {reason}"


class InvalidSnapshot(BadRequest):
    """The snapshot's state forbids what was asked."""

    template = "Invalid snapshot {snapshot_id}: {reason}"


class InvalidType(BadRequest):
    """The volume type's state forbids what was asked."""

    template = "Invalid volume type {type_id}: {reason}"


class InvalidHost(BadRequest):
    """The destination named cannot take the volume."""

    template = "Invalid host {host}: {reason}"


class NotAuthenticated(MigratorError):
    """No token, or one that names nobody."""

    status = 401
    final = True
    template = "{reason}"


class Forbidden(MigratorError):
    """Policy does not allow this caller."""

    status = 403
    final = True
    template = "Policy doesn't allow {action} to be performed."


class NotFound(MigratorError):
    """What was named does not exist, or not for this caller."""

    status = 404
    final = True
    template = "{kind} {id} could not be found."


class VersionNotAcceptable(MigratorError):
    """The microversion asked for is out of range."""

    status = 406
    final = True
    template = "Version {version} is not supported by the API. Minimum is {minimum} and maximum is {maximum}."


class Conflict(MigratorError):
    """Somebody else was faster, or the state no longer allows it."""

    status = 409
    final = True
    template = "{reason}"


class BodyTooLarge(MigratorError):
    """A request body over the limit, in bytes."""

    status = 413
    final = True
    template = "Request body is larger than {limit} bytes."


class ServiceUnavailable(MigratorError):
    """A service that must answer did not."""

    status = 503
    template = "{service} does not answer: {reason}"


# --- the database ----------------------------------------------------------------------------------------------------


class LostOwnership(MigratorError):
    """The row changed hands: its generation is no longer the one read. Stop at once and touch nothing."""

    status = 409
    final = True
    template = "Migration {migration_id} is no longer ours at generation {generation}."


# --- steps of a migration and drivers --------------------------------------------------------------------------------


class NoValidBackend(MigratorError):
    """No pool passed every filter; ``reason`` names the filter and the numbers."""

    status = 400
    final = True
    template = "No valid backend: {reason}"


class DriverError(MigratorError):
    """A backend refused or failed; trying again may help."""

    template = "{backend}: {reason}"


class CopierHangs(DriverError):
    """A copier was killed and is not gone, because a device keeps it inside the kernel: it may still write."""

    template = "The copier with process id {pid} was killed and is not gone: it waits for a device"


class NoSpace(MigratorError):
    """The destination is full; another attempt at once would fail alike."""

    final = True
    template = "No space left on {where}: {reason}"


class SourceUnreadable(MigratorError):
    """Reading the source failed at an offset (bytes)."""

    template = "Reading {path} at offset {offset} failed: {reason}"


class DestinationUnwritable(MigratorError):
    """Writing the destination failed at an offset (bytes)."""

    template = "Writing {path} at offset {offset} failed: {reason}"


class SizeMismatch(MigratorError):
    """An end is not as large as the volume says (bytes)."""

    final = True
    template = "{path} has {got} bytes, wanted {wanted}."


class VerifyMismatch(MigratorError):
    """Source and destination differ; the source is intact."""

    final = True
    template = "Source and destination differ at offset {offset}."


class SourceInUse(MigratorError):
    """A hypervisor has the volume open that is moved as one that nobody uses: what it writes would be left behind."""

    final = True
    template = (
        "A hypervisor has volume {volume_id} open on {host}, although no attachment says so: what it writes would be "
        "lost by the switch. End that, or let the volume be attached, then retry."
    )


class Unreachable(MigratorError):
    """The copier of this machine has no path to the other end."""

    final = True
    template = "{what} cannot be reached from here: {reason}"


class ExportImpossible(MigratorError):
    """The host of the destination can offer no volume to other hosts; an operator must set it up."""

    final = True
    template = "The destination's host cannot export volumes to other hosts: {reason}"


class ComputeUnreachable(MigratorError):
    """Nothing was sent to the compute service, because it could not be reached."""

    status = 503
    template = "The compute service cannot be reached: {reason}"


class ComputeSilent(MigratorError):
    """A request was sent to the compute service and no answer came: nobody knows whether it was followed."""

    status = 503
    template = "The compute service has not answered: {reason}"


class ComputeFailed(MigratorError):
    """The compute service broke on a request (5xx)."""

    status = 502
    final = True
    template = "The compute service failed with {code}: {reason}"


class ComputeRefused(MigratorError):
    """The compute service understood a request and refused it (4xx); 404: there is no such server."""

    status = 409
    final = True
    template = "The compute service refused with {code}: {reason}"


class SwapFailed(MigratorError):
    """The compute service did not move a server to the destination; the server goes on using the volume's old place."""

    final = True
    template = "Server {server} was not moved to the new place of volume {volume_id}: {reason}"


class SwapUndecided(MigratorError):
    """A server's host may still write to the destination, so that it must not be removed."""

    final = True
    template = (
        "Attachment {attachment_id} gives server {server} on {host} access to the destination, and the compute service "
        "has not ended it. When it certainly copies nothing there any more, delete that attachment and retry."
    )


class VolumeChanged(MigratorError):
    """The volume's row was changed under the migration; it stays where it is."""

    final = True
    template = "Volume {volume_id} is no longer as it was when its migration began."


class TooManyAttempts(MigratorError):
    """Every attempt of a step ended without a report: its process died each time."""

    final = True
    template = "{step} was begun {attempts} times and never reported: its process died each time."


class StepTimeout(MigratorError):
    """A call that had its time did not end in it."""

    final = True
    template = "{what} did not finish within {seconds} seconds."


class NotFenced(MigratorError):
    """A copier of a machine that does not answer may still write; nothing goes on until it certainly cannot."""

    template = (
        "Process {pid} on {machine} may still write to the destination, and {service} cannot shut it out. This goes on "
        "by itself when migrator-volume runs there again. If that machine is off for certain: "
        "migrator-manage migration fence {migration_id} --i-know-the-machine-is-off"
    )


class VolumeMissing(MigratorError):
    """The backend has no object of that name."""

    final = True
    template = "{backend} has no {name}."


class Unsupported(MigratorError):
    """What was asked for is nothing that this kind of backend can do."""

    status = 400
    final = True
    template = "{backend} cannot {what}."


class ConfigError(MigratorError):
    """The configuration cannot work; the process ends with this one line."""

    final = True
    template = "{option}: {reason}"


# --- the command line ------------------------------------------------------------------------------------------------


class NotUnique(BadRequest):
    """Several things answer to the name given; only an id tells them apart."""

    template = "{count} {kind}s are named {name}: {ids}; give the id of one of them."


class ApiRefused(MigratorError):
    """The service understood a request and refused it (4xx), in its own words."""

    status = 400
    final = True
    template = "{reason}"


class ApiFailed(MigratorError):
    """The service broke on a request (5xx), or answered what it must not."""

    status = 502
    template = "{reason}"


class ApiUnreachable(MigratorError):
    """No answer came from the service at all."""

    status = 503
    template = "cannot reach {url}: {reason}"


class MigrationFailed(MigratorError):
    """A migration that was waited for did not succeed."""

    final = True
    template = "Migration of volume {volume} {what} at {step}: {reason}"


class MigrationCancelled(MigratorError):
    """A migration that was waited for was cancelled and taken back."""

    final = True
    template = "Migration of volume {volume} was cancelled at {step}; nothing was moved."


class VolumeFailed(MigratorError):
    """A volume that was waited for went to an error status."""

    final = True
    template = "Volume {volume} is in status {status}."
