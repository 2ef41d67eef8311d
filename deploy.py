"""The order of a converge, one call a line. Run it: pyinfra inventories/<site>.py deploy.py"""

from operations import app, baseline, docker, firewall, fleet, ingress, lock, logs, mark, program, registration, verify

lock.take(name="Lock")
baseline.prepare(name="Host baseline")
docker.engine(name="Docker engine")
program.lay_down(name="Slot program and units")
firewall.protect(name="Firewall")
logs.ship(name="Log shipping")
app.converge(name="API, Console and stores")
ingress.front(name="Front proxy")
fleet.converge(name="Workers and host proxy")
ingress.register(name="Register with the ingress")
registration.core_fleet(name="Register with the API")
registration.dialler(name="Register with the Dialler")
mark.write(name="Mark")
verify.site(name="Verify")
lock.give_back(name="Unlock")
