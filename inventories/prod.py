from callfleet.inventory import load

globals().update(load(__file__))
