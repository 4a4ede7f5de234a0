"""The dashboard's rooms, in the order of its navigation."""

from api.admin import account, adapters, data, jobs, overview, playground, sign_in, usage, workers

ROUTERS = (
    sign_in.router,
    sign_in.inside,
    *(room.router for room in (overview, data, jobs, adapters, playground, workers, account, usage)),
)
