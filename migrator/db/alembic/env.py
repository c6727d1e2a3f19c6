"""alembic's entry: runs the migrations on the connection that migrator.db.schema hands over."""

from alembic import context

from migrator.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes tables by copying them
)
with context.begin_transaction():
    context.run_migrations()
