"""The dashboard's rooms, in the order of its navigation."""

from api.admin import data, jobs, overview, sign_in

ROUTERS = (sign_in.router, sign_in.inside, overview.router, data.router, jobs.router)
