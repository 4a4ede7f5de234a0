"""The dashboard's rooms, in the order of its navigation; compare stands before jobs, whose ids would swallow it."""

from api.admin import account, adapters, compare, data, jobs, overview, playground, sign_in, usage, workers

ROUTERS = (
    sign_in.router,
    sign_in.inside,
    *(room.router for room in (overview, data, compare, jobs, adapters, playground, workers, account, usage)),
)
